"""Records -> the explorer's files: static pages, and data that they load by script tags.

Pages opened from disk may not fetch, so data are scripts that call `superscope(name, data)`. They
are JSON in ASCII with `<` as a code point, and the page's own script puts every string in as a
text node; the few pages that hold text themselves are escaped by Jinja. A content policy stands
behind: scripts and style from beside the page alone, and no request to anywhere else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from interp import durable
from interp.config import MIN_SEEDS
from interp.explore.firings import AFTER, BEFORE
from interp.explore.records import HeldOutText, Latent, Match
from interp.report.tables import ARCHITECTURES
from interp.report.wording import SUBLAYERS
from interp.run import CONTEXTUAL, TRAINED, TWIN

SHARD = 128
"""Latents in one data file: about 200 kB."""
FACTS = "facts.json"
RELATED = "related.json"
_POLICY = (
    # 'self' is no place on disk in every browser, and `file:` none on a server.
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)
_COLUMNS = (
    ("number", "Latent", ""),
    ("fires", "Fires on", "Tokens with the largest shares of its activation."),
    (
        "label",
        "Label",
        "The fact about Python tokens that it tells best; in italics: too weak for a name.",
    ),
    (
        "f1",
        "F1",
        "How well it tells the label, on documents that it was not chosen on; 1 is perfect.",
    ),
    ("density", "Density", "Share of tokens on which it fires."),
    ("mass", "Mass", "Its share of all activation times decoder length."),
    ("found", "Seeds", "Seeds that found it, itself included; where it does not count, why."),
    (
        "entropy",
        "Entropy",
        "Bits, of the token's identity where it fires: near 0 it fires on one token. Corrected for "
        "few firings.",
    ),
    ("near", "Nearest", "Largest decoder cosine in the same dictionary, and with which latent."),
    ("promotes", "Promotes", "Tokens that it makes likelier, by the logit lens."),
)
_IN_TABLE = 3
"""Tokens of a cell."""


@dataclass(frozen=True)
class Facts:
    """One group of SAEs, as pages name it."""

    key: str
    """Its folder, with forward slashes."""
    model: str
    control: str
    layer: int
    hook_point: str
    about: str
    d_sae: int
    k: int
    n_seeds: int
    n_tokens: int
    text: str
    text_key: str
    """Equal where positions are comparable."""
    depth: float
    main: bool
    matched: bool
    """Whether the study's matching could be repeated."""
    found: int | None
    """Classes that `min_seeds` or more found."""
    by_chance: float | None
    fvu: float | None
    min_seeds: int = MIN_SEEDS
    counted: list[int] = field(default_factory=list)
    """Latents of each seed that the study counts."""
    told: list[int] | None = None
    """Latents of each seed that tell a label; None for text without labels."""
    architecture: str = "topk"
    settings: dict[str, Any] = field(default_factory=dict)
    """What the pages depend on; other settings, other pages."""

    @property
    def model_title(self) -> str:
        return f"{self.model}, untrained twin" if self.control == TWIN else self.model

    @property
    def title(self) -> str:
        kind = "" if self.architecture == "topk" else f"{ARCHITECTURES[self.architecture]}, "
        size = f"{kind}{self.d_sae} latents, k {self.k}"
        return f"{self.model_title}, layer {self.layer}, {self.about}, {size}"

    def page(self, latent_root: str) -> str:
        """Address of its page, from a page whose root is `latent_root`."""
        return latent_root + quote(self.key) + "/index.html"


def write_assets(folder: Path) -> None:
    """The script and the style sheet that all pages share."""
    own, report = files("interp.explore"), files("interp.report")
    (folder / "assets").mkdir(exist_ok=True)
    style = report.joinpath("style.css").read_text("utf-8")
    style += own.joinpath("explorer.css").read_text("utf-8")
    durable.write(folder / "assets" / "explorer.css", style.encode())
    script = own.joinpath("explorer.js").read_bytes()
    durable.write(folder / "assets" / "explorer.js", script)


def write_text(folder: Path, text: HeldOutText) -> None:
    """The held-out text, once for all models that read the same tokens."""
    name = text_name(text.sha256)
    file = folder / "text" / f"{name}.js"
    if file.exists():
        return
    file.parent.mkdir(exist_ok=True)
    data = {
        "strings": text.strings,
        "ids": text.ids.tolist(),
        "documents": text.documents,
        "n_ctx": text.n_ctx,
    }
    durable.write(file, _script(name, data))


def text_name(sha256: str) -> str:
    return f"text-{sha256[:16]}"


def read_facts(folder: Path) -> Facts | None:
    """Of a group whose pages are there; None where they are not, or from another version."""
    try:
        return Facts(**json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_group(
    root: Path,
    facts: Callable[[list[int], list[int]], Facts],
    key: str,
    seeds: Iterable[Iterator[Latent]],
) -> Facts:
    """The pages of one group, whole or not there; replaces older ones.

    seeds: the latents of each seed, in order; only one shard of them is held. facts: called at the
    end with the latents of each seed that are counted, and that tell a label.
    """
    folder = root / key
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counted, told = [], []
    for seed, latents in enumerate(seeds):
        table = _Table()
        for number, shard in enumerate(_shards(latents)):
            table.add(shard)
            name = f"latents-{seed}-{number}"
            (partial / f"{name}.js").write_bytes(_script(name, [_latent(one) for one in shard]))
        (partial / f"table-{seed}.js").write_bytes(_script(f"table-{seed}", table.to_json()))
        counted.append(table.n_counted)
        told.append(table.n_told)
    done = facts(counted, told)
    (partial / "index.html").write_text(_group_page(done), "utf-8")
    (partial / FACTS).write_text(json.dumps(vars(done)))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return done


def write_page(root: Path, facts: Facts) -> None:
    """The page of a group that has its data already, as this version draws it."""
    durable.write(root / facts.key / "index.html", _group_page(facts).encode())


def write_related(
    root: Path,
    facts: Facts,
    others: Sequence[Facts],
    matches: Sequence[Sequence[Sequence[Match]]],
    least: float,
) -> None:
    """[seed][latent] -> matches in the first seed of the other groups, and with which these are."""
    folder, up = root / facts.key, _up(facts.key)
    groups = [{"title": other.title, "href": other.page(up)} for other in others]
    for seed, of_seed in enumerate(matches):
        for number, shard in enumerate(_shards(of_seed)):
            name = f"related-{seed}-{number}"
            rows = [[[m.where, m.latent, _short(m.correlation)] for m in one] for one in shard]
            data = {"groups": groups, "least": least, "latents": rows}
            durable.write(folder / f"{name}.js", _script(name, data))
    durable.write(folder / RELATED, _compared(others))


def is_related(root: Path, facts: Facts, others: Sequence[Facts]) -> bool:
    """Whether `write_related` has compared with exactly these."""
    file = root / facts.key / RELATED
    return file.is_file() and file.read_bytes() == _compared(others)


def _compared(others: Sequence[Facts]) -> bytes:
    return json.dumps([[other.key, other.settings] for other in others]).encode()


def write_index(
    root: Path, groups: Sequence[Facts], *, preset: str, preview: bool, left: int
) -> Path:
    """The page that everything is reached from; `left`: groups that have no pages yet."""
    by_model: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for facts in groups:
        row = vars(facts) | {
            "model_title": facts.model_title,
            "href": facts.page(""),
            "counted": _span(facts.counted),
            "told": "–" if facts.told is None else _span(facts.told),
            "found": "–" if facts.found is None else f"{facts.found:,}",
            "by_chance": "–" if facts.by_chance is None else f"{facts.by_chance:,.0f}",
            "fvu": "–" if facts.fvu is None else f"{facts.fvu:.3f}",
        }
        by_model.setdefault((facts.model, facts.control), []).append(row)
    page = _render(
        "index.html",
        models=list(by_model.values()),
        totals={
            "latents": f"{sum(f.d_sae * f.n_seeds for f in groups):,}",
            "saes": f"{sum(f.n_seeds for f in groups):,}",
            "models": sum(control == TRAINED for _, control in by_model),
        },
        has_labels=any(f.told is not None for f in groups),
        min_seeds=groups[0].min_seeds if groups else MIN_SEEDS,
        preset=preset,
        preview=preview,
        left=left,
        report=(root.parent / "report.html").is_file(),
    )
    durable.write(root / "index.html", page.encode())
    return root / "index.html"


def _group_page(facts: Facts) -> str:
    has_labels = facts.told is not None
    up = _up(facts.key)
    hook_point = facts.hook_point.removesuffix(CONTEXTUAL)
    read = SUBLAYERS.get(hook_point.rpartition(".")[2], "the residual stream")
    contextual = facts.about == "contextual"
    stream = f"{read} {'less the means of token and position' if contextual else 'as it is'}"
    data = {
        "title": facts.title,
        "d_sae": facts.d_sae,
        "n_seeds": facts.n_seeds,
        "shard": SHARD,
        "before": BEFORE,
        "after": AFTER,
        "text_name": text_name(facts.text_key),
        "text_path": f"{up}text/{text_name(facts.text_key)}.js",
    }
    shown = {
        "title": facts.title,
        "note": f"{ARCHITECTURES[facts.architecture]} SAEs at {hook_point}, on {stream}."
        + (f" FVU {facts.fvu:.3f}." if facts.fvu is not None else ""),
        "n_seeds": facts.n_seeds,
        "enough": [
            n for n in sorted({MIN_SEEDS, facts.min_seeds, facts.n_seeds}) if 1 < n <= facts.n_seeds
        ],
        "n_tokens": f"{facts.n_tokens:,}",
        "text": facts.text,
        "has_labels": has_labels,
    }
    columns = [c for c in _COLUMNS if has_labels or c[0] not in ("label", "f1")]
    return _render("layer.html", facts=shown, data=data, root=up, columns=columns)


def _render(name: str, **values: Any) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("interp.explore").joinpath(name).read_text("utf-8")
    return environment.from_string(source).render(policy=_POLICY, **values)


class _Table:
    """The columns of one seed's table; texts once each."""

    def __init__(self) -> None:
        self.n_counted = self.n_told = 0
        self._strings: dict[str, int] = {}
        self._states: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._columns: dict[str, list[Any]] = {}

    def add(self, latents: Iterable[Latent]) -> None:
        for one in latents:
            self.n_counted += one.state == "counted"
            self.n_told += one.label_told
            near, cosine = one.neighbours[0] if one.neighbours else (one.number, None)
            row = {
                "state": _number(self._states, one.state),
                "fires": self._texts(one.fires_on),
                "label": -1 if one.label is None else _number(self._labels, one.label),
                "f1": _short(one.label_f1),
                "told": int(one.label_told),
                "density": _short(one.density),
                "mass": _short(one.mass),
                "max": _short(one.max_act),
                "found": one.found_by,
                "entropy": _short(one.token_entropy_bits),
                "near": near,
                "near_cosine": _short(cosine),
                "promotes": self._texts(one.promotes),
            }
            for key, value in row.items():
                self._columns.setdefault(key, []).append(value)

    def to_json(self) -> Mapping[str, Any]:
        matched = any(found is not None for found in self._columns.get("found", []))
        return self._columns | {
            "strings": list(self._strings),
            "states": list(self._states),
            "labels": list(self._labels),
            "matched": matched,
        }

    def _texts(self, tokens: Sequence[tuple[str, float]]) -> list[int]:
        return [_number(self._strings, text) for text, _ in tokens[:_IN_TABLE]]


def _number(numbers: dict[str, int], text: str) -> int:
    return numbers.setdefault(text, len(numbers))


def _latent(one: Latent) -> dict[str, Any]:
    def tokens(found: Sequence[tuple[str, float]]) -> list[list[Any]]:
        return [[text, _short(x)] for text, x in found]

    return {
        "fires_on": tokens(one.fires_on),
        "promotes": tokens(one.promotes),
        "suppresses": tokens(one.suppresses),
        "neighbours": [[latent, _short(cosine)] for latent, cosine in one.neighbours],
        "histogram": one.histogram,
        "passages": [
            [p.band, p.centre, [x for at, act in p.acts for x in (at, _short(act))]]
            for p in one.passages
        ],
        "in_seeds": [
            [m.where, m.latent, _short(m.cosine), _short(m.correlation), int(m.counted)]
            for m in one.in_seeds
        ],
    }


_T = TypeVar("_T")


def _shards(items: Iterable[_T]) -> Iterator[list[_T]]:
    left = iter(items)
    while shard := list(islice(left, SHARD)):
        yield shard


def _script(name: str, data: Any) -> bytes:
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f"superscope({json.dumps(name)},{text});\n".encode("ascii")


def _short(value: float | None) -> float | None:
    """Four digits: what pages show, and a third of the size."""
    return None if value is None else float(f"{value:.4g}")


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _up(key: str) -> str:
    return "../" * (key.count("/") + 1)
