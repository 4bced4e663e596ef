"""`.ci/run` installs a browser where it can, and never fails for the lack of one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"
SCRIPT = '#!{bash}\necho {name} "$@" >> {log}\n{then}\n'


@pytest.fixture
def ci(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """ci(program="what it does", ...) -> exit status, calls of those programs, stderr.

    No other program is found than these and what the script itself is made of.
    """
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    bash = shutil.which("bash")
    for needed in ("bash", "dirname"):
        found = shutil.which(needed)
        assert found is not None
        (folder / needed).symlink_to(found)

    def run(**programs: str) -> tuple[int, str, str]:
        for name, then in programs.items():
            file = folder / name.replace("_", "-")
            file.write_text(SCRIPT.format(bash=bash, name=file.name, log=log, then=then))
            file.chmod(0o755)
        done = subprocess.run(
            [str(folder / "bash"), str(RUN)],
            env={"PATH": str(folder)},
            capture_output=True,
            text=True,
        )
        return done.returncode, log.read_text(), done.stderr

    return run


ROOT, USER = {"id": "echo 0"}, {"id": "echo 1000"}


def test_a_missing_browser_is_installed_before_the_tests(ci: Callable[..., object]) -> None:
    status, calls, told = ci(make="", apt_get="", **ROOT)
    assert status == 0
    lines = calls.splitlines()
    [install] = [number for number, line in enumerate(lines) if line.endswith(" chromium")]
    assert "install -y" in lines[install]
    assert "Acquire::Retries=1" in lines[install]
    assert install < lines.index("make check test")
    assert told == ""


@pytest.mark.parametrize("why", [ROOT | {"apt_get": "exit 100"}, ROOT, USER | {"apt_get": ""}])
def test_a_browser_that_cannot_be_installed_fails_nothing(
    ci: Callable[..., object], why: dict[str, str]
) -> None:
    status, calls, told = ci(make="", **why)
    assert status == 0
    assert "make check test" in calls
    assert "tests that need it skip" in told


def test_a_browser_that_is_there_is_left_alone(ci: Callable[..., object]) -> None:
    status, calls, told = ci(make="", chromium="", apt_get="exit 100", **ROOT)
    assert (status, told) == (0, "")
    assert "apt-get" not in calls


def test_tests_that_fail_fail_the_run(ci: Callable[..., object]) -> None:
    status, _, _ = ci(make="exit 2", chromium="", **ROOT)
    assert status == 2
