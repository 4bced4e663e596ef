"""What the pages say can be done: commands parse, code compiles, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import interp
import interp.cli
import saes
import saes.cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/site.py, which writes into a folder of its own."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(module, "SITE", tmp_path / "site")
    return module


def blocks(path: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(path.read_text()):
        if language in languages:
            yield text


@pytest.mark.parametrize("path", TEXTS, ids=by_name)
def test_every_command_shown_parses(path: Path) -> None:
    programs = {
        "interp": (interp.cli.build_parser(), "call"),
        "saes": (saes.cli.build_parser(), "run"),
    }
    for line in "".join(blocks(path, "", "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] in programs:
            parser, action = programs[words[0]]
            assert callable(getattr(parser.parse_args(words[1:]), action, None)), line


def test_commands_are_shown_at_all() -> None:
    shown = "".join(text for path in TEXTS for text in blocks(path, "", "sh"))
    for command in ("interp study", "interp plan", "interp toy", "saes train", "interp geometry"):
        assert f"\n{command} " in shown, command


@pytest.mark.parametrize("path", TEXTS, ids=by_name)
def test_python_shown_compiles_and_calls_what_there_is(path: Path) -> None:
    for text in blocks(path, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = {"interp": interp, "saes": saes}.get(node.value.id)
                assert module is None or hasattr(module, node.attr), ast.unparse(node)


def test_every_study_shown_is_one(tmp_path: Path) -> None:
    from interp.config import PRESETS, read_config

    shown = [text for path in TEXTS for text in blocks(path, "yaml")]
    assert shown
    for text in shown:
        (tmp_path / "study.yaml").write_text(text)
        config = read_config(tmp_path / "study.yaml")
        assert config.n_seeds == PRESETS["full"].n_seeds, "as the text beside it says"
        assert config.preset == "custom" or config.twins


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "python.md").read_text()
    for module in (interp, saes):
        for name in module.__all__:
            assert f'heading: "{module.__name__}.{name}"' in text, name


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entries: list[dict[str, object]]) -> Iterator[str]:
        for entry in entries:
            for value in [entry] if isinstance(entry, str) else entry.values():
                yield from pages(value) if isinstance(value, list) else [str(value)]

    listed = sorted(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert listed == sorted(here | {"changes.md", "model-card.md"})


def test_the_site_is_put_together_whole(site: ModuleType) -> None:
    site.main()
    pages = sorted(site.PAGES.rglob("*.md"))
    for path in pages:
        text = FENCE.sub("", path.read_text())
        assert not site.TAKEN.search(text), path
        for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
            assert (path.parent / target).resolve().exists(), f"{path.name}: {target}"
    benchmarks = (site.PAGES / "benchmarks.md").read_text()
    assert "| (d_in, d_sae, k), batch |" in benchmarks
    assert "## interp study" in (site.PAGES / "reference" / "commands.md").read_text()
    assert "## saes eval" in (site.PAGES / "reference" / "commands.md").read_text()
    assert (site.PAGES / "notebooks" / "01_quickstart.ipynb").is_file()


def test_who_reads_a_page_in_the_repository_is_told_where_the_rest_is(site: ModuleType) -> None:
    for path in DOCS.rglob("*.md"):
        text = path.read_text()
        for taken in site.TAKEN.finditer(text):
            assert site.INSTEAD.match(text, taken.start()), f"{path.name}: {taken[0]}"
        if site.TAKEN.search(text):
            shown = site.page(path)
            assert "is in README" not in shown
            assert "print it.*" not in shown


def test_what_a_page_cannot_take_stops_the_site(site: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no block 'weather'"):
        site._block("weather")
    here, there = "docs/index.md", "[a](../notebooks/none.ipynb) and [b](../results/quick/)"
    # A folder has no page; a missing file keeps its link, which fails where links are checked.
    assert site._linked(there, here, here) == "[a](notebooks/none.ipynb) and b"


def test_a_page_that_fetches_from_elsewhere_is_refused(site: ModuleType) -> None:
    site.SITE.mkdir()
    page = site.SITE / "index.html"
    page.write_text('<a href="https://arxiv.org">paper</a><script src="assets/own.js"></script>')
    site.check()
    page.write_text('<link rel="stylesheet" href="https://fonts.example/css">')
    with pytest.raises(SystemExit, match="fetches from elsewhere"):
        site.check()


def test_screenshots_stay_small() -> None:
    images = list((DOCS / "images").iterdir())
    assert 1 <= len(images) <= 6
    for image in images:
        assert image.stat().st_size < 200_000, image.name
