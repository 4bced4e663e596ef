"""The page: complete, self-contained, deterministic, and deaf to hostile strings."""

import base64
import hashlib
import json
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_run
from browser import CHROMIUM, COMMAND
from jinja2 import Environment as RealEnvironment

from interp.cli import main
from interp.report import page, write_report
from interp.report.figures import all_figures
from interp.report.reading import RunRecords, read_run, read_summary

HOSTILE = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
    "<!--<script>' \" & {{ 7 * 7 }} \u202egnp.exe \u2028 ]]>"
)


class Structure(HTMLParser):
    """Tags with their attributes, text of the body, and raw text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside != "style":
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_run.write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def light_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Renders a summary without drawing files or bundling Vega, which take seconds."""
    monkeypatch.setattr(page, "_vega", lambda: "/* vega */")

    def render(data: dict[str, Any]) -> str:
        measured = [model["loss_nats_per_token"] for model in data.get("models", [])]
        frame = report_run.results(data) if measured and None not in measured else None
        run = RunRecords(read_summary(data), frame, report_run.MANIFEST, "n_seeds: 5\n")
        drawn = all_figures(run.summary)
        return page.render(run, drawn, dict.fromkeys(drawn, "<svg/>"))

    return render


def test_every_figure_is_written_twice_and_nothing_half(written: Path) -> None:
    figures = written.parent / "figures"
    names = set(all_figures(read_run(written.parent).summary))
    assert {path.name for path in figures.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    assert {path.name for path in written.parent.iterdir()} == {
        "summary.json",
        "results.parquet",
        "manifest.json",
        "config.resolved.yaml",
        "figures",
        "report.html",
    }


def test_a_full_disk_is_told_in_a_line_and_leaves_the_report_as_it_was(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(written.parent, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        status = main(["report", str(run)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no space left" in line
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before


def test_the_page_is_one_file_that_asks_for_nothing(written: Path) -> None:
    text = written.read_text("utf-8")
    assert len(text) < 2_000_000
    found = Structure(text)
    assert found.named("link") == []
    assert all("src" not in attributes for attributes, _ in found.scripts)
    assert all((image["src"] or "").startswith("data:") for image in found.named("img"))
    inside = ("#", "data:text/csv;")
    assert all((anchor["href"] or "").startswith(inside) for anchor in found.named("a"))
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_run_gives_the_same_bytes(written: Path) -> None:
    before = written.read_bytes()
    assert write_report(written.parent).read_bytes() == before


def test_the_policy_lets_run_what_was_meant_to_run(written: Path) -> None:
    found = Structure(written.read_text("utf-8"))
    (policy,) = [m["content"] for m in found.named("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [text for attributes, text in found.scripts if "type" not in attributes]
    assert allowed == {
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run
    }
    assert len(run) == 2
    assert "unsafe-eval" not in policy


def test_the_specifications_on_the_page_are_those_of_the_files(written: Path) -> None:
    found = Structure(written.read_text("utf-8"))
    (specs,) = [json.loads(text) for attrs, text in found.scripts if attrs.get("id") == "specs"]
    drawn = all_figures(read_run(written.parent).summary)
    assert set(specs) == set(drawn)
    assert all(
        specs[name][part] == figure.spec[part]
        for name, figure in drawn.items()
        for part in ("layer", "concat")
        if part in figure.spec
    )


def test_every_drawing_has_words_and_every_table_its_headers(written: Path) -> None:
    found = Structure(written.read_text("utf-8"))
    images = found.named("img")
    assert len(images) == 9
    assert all(len(image["alt"] or "") > 60 for image in images)
    headers = found.named("th")
    assert headers
    assert {header["scope"] for header in headers} == {"col", "row"}
    headings = [name for name, _ in found.tags if re.fullmatch(r"h\d", name)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert set(headings) == {"h1", "h2", "h3"}
    targets = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    links = [a["href"] or "" for a in found.named("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    # Every table but that of the record, which is a file of its own, comes with a spreadsheet.
    n_tables = len(found.named("table")) - 1
    assert sum(link.startswith("data:text/csv;") for link in links) == n_tables > 3


def test_the_page_says_what_it_must(written: Path) -> None:
    text = Structure(written.read_text("utf-8")).text
    for said in (
        "How many features does a layer pack per dimension",
        "At half depth, 7 trained models of width 32 to 256 pack at least 1.8 to 2.9 contextual",
        "width drives both",
        "alpha = 0.61 (95% interval 0.49 to 0.74)",
        "alpha at fixed tokens",
        "1.2 (95% interval 1.1 to 1.3)",
        "In the untrained twins the power is 0.72 (no interval)",
        "Only what stands above the twin can be credited to training",
        "the token hash of deps differs from the committed one",
        "interp study full --out runs/full",
        "1 h 30 min",
        "1.62 GB at peak",
        "Ablated: mean ablation.",
        "no: censored at D",
        "All other counts (32)",
        "versions / torch",
        "9f2c9f2c",
    ):
        assert said in text, said
    assert "Preview" not in text
    # Said once, in the caveats: the study's own line for it is not repeated.
    assert "the estimators were not checked" not in text


def test_a_preview_is_marked_before_anything_else(
    light_page: Callable[[dict[str, Any]], str],
) -> None:
    text = Structure(light_page(report_run.summary() | {"preview": True})).text
    assert text.index("preview report") < text.index("How many features does a layer pack")
    assert "Preview, not a result: at half depth" in text


def test_the_figure_stands_right_under_the_answer(
    light_page: Callable[[dict[str, Any]], str],
) -> None:
    html = light_page(report_run.summary())
    answer = html.index("pack at least 1.8 to 2.9")
    figure = html.index('data-figure="packing_against_loss"')
    assert html.index("to read before quoting this") < figure
    assert answer < figure < html.index("the count grows as width to the power")


def test_estimators_in_the_tables_are_explained(
    light_page: Callable[[dict[str, Any]], str],
) -> None:
    data = report_run.summary()
    data["packing"].append(data["packing"][0] | {"estimator": "hill_1"})
    text = Structure(light_page(data)).text
    assert "hill_1 The effective number of latents" in text
    assert "live_latents_10" not in text


def hostile_run() -> dict[str, Any]:
    data = json.loads(json.dumps(report_run.summary()).replace("ladder/d064", "@"))
    data = json.loads(json.dumps(data).replace('"@"', json.dumps(HOSTILE)))
    for record in data["packing"]:
        record |= {"hook_point": HOSTILE, "calibration": HOSTILE}
        if record["reason"]:
            record["reason"] += HOSTILE
    data["warnings"] = [HOSTILE]
    data["command"] = HOSTILE
    data["scaling"]["caption"] = HOSTILE
    data["correlation"][0]["reason"] = HOSTILE
    data["preset"] = HOSTILE
    return data


def test_hostile_strings_stay_text(light_page: Callable[[dict[str, Any]], str]) -> None:
    calm, attacked = (
        Structure(light_page(report_run.summary())),
        Structure(light_page(hostile_run())),
    )
    # No tag more of any kind that could act, and the strings whole among the words.
    for tag in ("script", "img", "style", "meta", "iframe"):
        assert len(attacked.named(tag)) == len(calm.named(tag)), tag
    assert not any(name.startswith("on") for _, attrs in attacked.tags for name in attrs)
    assert " ".join(HOSTILE.split()) in attacked.text
    assert "{{ 7 * 7 }}" in attacked.text
    (specs,) = [json.loads(text) for attrs, text in attacked.scripts if attrs.get("id") == "specs"]
    datasets = specs["packing_against_loss"]["datasets"].values()
    assert HOSTILE in {row.get("model") for rows in datasets for row in rows}


def test_the_escape_test_would_see_an_escape(
    light_page: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The negative control: without escaping the same strings become a handler that would run.
    monkeypatch.setattr(
        page, "Environment", lambda **options: RealEnvironment(**options | {"autoescape": False})
    )
    attacked = Structure(light_page(hostile_run()))
    assert any("onerror" in attributes for _, attributes in attacked.tags)


def drop(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {key: value for key, value in data.items() if key not in keys}


def one_model(data: dict[str, Any]) -> dict[str, Any]:
    name = data["models"][0]["name"]
    packing = [record for record in data["packing"] if record["model"] == name]
    return data | {"models": data["models"][:1], "packing": packing}


def every_number_null(data: dict[str, Any]) -> dict[str, Any]:
    def nulled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: nulled(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [nulled(v, key) for v in value]
        keep = key in ("d_model", "layer") or not isinstance(value, int | float)
        return value if keep else None

    return nulled(data)


@pytest.mark.parametrize(
    "without",
    [
        drop("exponent", "correlation", "scaling"),
        drop("packing"),
        drop("models"),
        drop("primary", "warnings", "command", "wall_time_seconds"),
        one_model,
        every_number_null,
        lambda data: {},
    ],
    ids=["fits", "packing", "models", "primary", "others", "numbers", "everything"],
)
def test_missing_pieces_leave_a_page(
    without: Callable[[dict[str, Any]], dict[str, Any]],
    light_page: Callable[[dict[str, Any]], str],
) -> None:
    found = Structure(light_page(without(report_run.summary())))
    assert "What the number means" in found.text
    assert "None" not in found.text
    assert "nan" not in found.text.lower().split()


def test_the_page_of_a_bare_summary_says_what_is_not_there(tmp_path: Path) -> None:
    run = report_run.write_run(tmp_path, {"models": [], "packing": []}, complete=False)
    text = Structure(write_report(run).read_text("utf-8")).text
    assert "Not identified" in text
    assert "The command was not recorded" in text
    assert "recorded no measurements" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_draws_every_figure_and_complains_of_nothing(tmp_path: Path) -> None:
    written = write_report(report_run.write_run(tmp_path / "run", hostile_run()))
    done = subprocess.run(
        [
            *COMMAND,
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            written.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "CONSOLE" not in done.stderr
    n_figures = len(all_figures(read_run(written.parent).summary))
    assert len(re.findall(r'<figure [^>]*class="live"', done.stdout)) == n_figures
    assert done.stdout.count('class="marks"') == n_figures
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title.startswith("superscope report")
