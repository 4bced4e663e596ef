"""The generated blocks of README.md and results/README.md: modules, figures, tables, findings.

`make readme` rewrites them; a test fails when they are stale. No figure in either is typed by
hand: they come from the committed runs under `results/`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FINDINGS = ROOT / "results" / "README.md"
RUN = "full"
"""The committed run that the README shows."""


def modules() -> str:
    """One line per module: its path and the first line of its docstring."""
    lines = []
    for package in ("interp", "saes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            if doc is None:
                raise SystemExit(f"{path} has no docstring; every module says what it is")
            first = re.split(r"\n\s*\n", doc)[0].replace("\n", " ")
            name = path.relative_to(ROOT).as_posix()
            lines.append(f"- `{name}`: {first}")
    return "\n".join(lines)


def figure(summary: dict[str, Any] | None = None) -> str:
    """The figure of the committed run, its headline and what made it."""
    folder = ROOT / "results" / RUN
    if summary is None:
        if not (folder / "summary.json").exists():
            return "*(no committed run yet)*"
        summary = json.loads((folder / "summary.json").read_text())
    from interp.report.answering import in_short
    from interp.report.reading import read_summary

    said = [summary["headline"], *in_short(read_summary(summary))[1:]]
    if not (ROOT / "results" / "referee" / "summary.json").exists():
        said[-1] += " The study that can tell, of models of one width, is not committed yet."
    return (
        "![Features per dimension against loss]"
        f"(results/{RUN}/figures/packing_against_loss.png)\n\n"
        + "\n>\n".join(f"> {text}" for text in said)
        + f"\n\n{_made_by(summary, RUN)}; config and numbers in "
        f"[`results/{RUN}/`](results/{RUN}/)."
    )


def costs() -> str:
    """Time and memory of the committed studies."""
    from interp.report.wording import duration, listed, size

    lines = ["| study | models counted | time | memory |", "|---|---|---|---|"]
    for name in ("quick", RUN):
        folder = ROOT / "results" / name
        if not (folder / "summary.json").exists():
            continue
        summary, manifest = (
            json.loads((folder / f"{file}.json").read_text()) for file in ("summary", "manifest")
        )
        counted = {row["model"] for row in summary["packing"]}
        widths = sorted(m["d_model"] for m in summary["models"] if m["name"] in counted)
        took = duration(float(summary["wall_time_seconds"]))
        peak = size(float(manifest["peak_memory_bytes"]))
        told = "`make study`, a preview" if name == "quick" else f"`interp study {name}`"
        lines.append(f"| {told} | width {listed(widths)} | {took} | {peak} |")
    return "\n".join(lines)


def _made_by(summary: dict[str, Any], name: str) -> str:
    """The line that measures all of a committed study, which may have been measured in parts."""
    parts = summary.get("merged_from")
    if not parts:
        return f"`{summary['command']}`"
    return (
        f"`interp study results/{name}/config.resolved.yaml --out runs/{name}`, measured here as "
        f"{len(parts)} studies of different models and put together by `interp merge`"
    )


def supported() -> str:
    """The architectures that the tests load, capture and compare."""
    path = ROOT / "tests" / "interp" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    rows = ["| Architecture | Models | Hook points |", "|---|---|---|"]
    for name, row in module.COVERED.items():
        points = "all but " + ", ".join(f"`{k}`" for k in row.lacks) if row.lacks else "all"
        rows.append(f"| `{name}` | {row.models} | {points} |")
    return "\n".join(rows)


def speed() -> str:
    """Training speed and quality against other libraries, from committed runs of the benchmark."""
    folder = ROOT / "results" / "sae_training"
    two_cores, one_core = folder / "two_cores" / "table.json", folder / "table.json"
    parts = [
        _speed_table(json.loads(file.read_text()), file.parent.relative_to(ROOT).as_posix())
        for file in (two_cores, one_core)
        if file.exists()
    ][:1]
    if two_cores.exists() and one_core.exists():
        parts.append(
            "On one core, in CPU time, with peak memory and where the time goes: "
            "[`results/sae_training/table.md`](results/sae_training/table.md)."
        )
    equal = folder / "equal_training" / "table.json"
    if equal.exists():
        parts.append(_equal_training(json.loads(equal.read_text())))
    return "\n\n".join(parts) or "*(no committed run yet)*"


CAPTURE_TARGET = 1.05
_CLOCKS = {"cpu": "CPU", "wall": "wall"}


def _speed_table(table: dict[str, Any], folder: str) -> str:
    peers = ("sae-lens", "dictionary_learning", "sparsify")
    lines = [
        "| (d_in, d_sae, k), batch | encoder | tokens/s | " + " | ".join(peers) + " |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    clock = f"{table['clock']}_us_per_token"
    for result in table["shapes"]:
        rows = result["contenders"]
        for name, dtype in (("superscope", "float32"), ("superscope bf16", "bfloat16")):
            cost = rows[name][clock]
            ratios = [f"{rows[p][clock] / cost:.1f}x" if p in rows else "-" for p in peers]
            cells = [result["label"], dtype, f"{1e6 / cost:,.0f}", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
    cores = f"{table['cores']} core{'s' if table['cores'] > 1 else ''}"
    threads = " and ".join(map(str, table.get("threads", [1])))
    best = f", each at its best of {threads} threads" if threads != "1" else ""
    told = "Which targets are missed"
    if table["cores"] == 1:
        told += ", and where the time goes"
    return (
        "\n".join(lines) + f"\n\n`{table['command']}`, {cores} of {table['cpu']}, "
        f"{_CLOCKS[table['clock']]} time, peers in float32{best}. {table['note']} {told}: "
        f"[`{folder}/table.md`]({folder}/table.md).\n\n" + _what_speed_leaves_out(table, clock)
    ).replace(".  ", ". ")


def _what_speed_leaves_out(table: dict[str, Any], clock: str) -> str:
    """Equal steps are not equal quality, and one peer has a bfloat16 of its own."""
    single = [r for r in table["shapes"] if not r["label"].startswith("4 x")]
    names = ("superscope", "sae-lens", "dictionary_learning", "sparsify")
    fvus = [
        f"{'ours' if name == 'superscope' else name} "
        + ", ".join(f"{r['contenders'][name]['fvu']:.2f}" for r in single)
        for name in names
        if all(name in r["contenders"] for r in single)
    ]
    both = [
        [r["contenders"][f"{name} bf16"][clock] for name in ("sae-lens", "superscope")]
        for r in single
        if "sae-lens bf16" in r["contenders"]
    ]
    ratios = [f"{theirs / mine:.1f}x" for theirs, mine in both]
    steps = single[0]["contenders"]["superscope"]["n_steps"]
    return (
        f"Equal steps are not equal quality: after these {steps} steps FVU is, by shape, "
        f"{'; '.join(fvus)}. Against sae-lens's own bfloat16, bfloat16 is {', '.join(ratios)}."
    )


def _equal_training(table: dict[str, Any]) -> str:
    """FVU and dead latents of every trainer after equal steps, in one sentence each."""
    said = []
    for result in table["equal_training"]:
        found = {k: v for k, v in result["contenders"].items() if not k.endswith("bf16")}
        fvus, dead = (
            ", ".join(
                f"{'ours' if name == 'superscope' else name} {show(one)}"
                for name, one in sorted(found.items(), key=lambda item: item[1]["fvu"])
            )
            for show in (lambda one: f"{one['fvu']:.4f}", lambda one: f"{one['dead_fraction']:.2%}")
        )
        said.append(f"after {result['n_steps']} steps FVU {fvus}, latents that never fire {dead}")
    first = table["equal_training"][0]
    return (
        f"Equal training, {first['label']}, mean of {first['n_seeds']} seeds: {'; '.join(said)} "
        f"(`{table['command']}`, "
        "[all trainers](results/sae_training/equal_training/table.md))."
    )


def studies() -> str:
    """Whole studies against the same job with another trainer; at growing sizes; on Ray."""
    folder = ROOT / "results" / "study"
    sys.path.insert(0, str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("study")
    sys.path.pop(0)
    parts = {}
    for part in benchmark.PARTS:
        if (file := folder / part / benchmark.RAW).exists():
            parts[part] = benchmark.medians(json.loads(file.read_text())["runs"][part])
    if not parts:
        return "*(no committed run yet)*"
    told = []
    if "peer" in parts:
        told.append(_peers(benchmark.pairs(parts["peer"])))
    others = [benchmark.verdicts(part, sides) for part, sides in parts.items() if part != "peer"]
    told.append("\n".join(f"- {line}" for lines in others for line in lines))
    tables = [f"[{part}](results/study/{part}/{benchmark.TABLE})" for part in parts]
    told.append(f"Commands, memory and every side: {', '.join(tables)}.")
    return "\n\n".join(told)


def _peers(pairs: Iterable[tuple[str, dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        "| side, d x d_sae | seconds, of them in training | sae-lens's | times faster, in training "
        "| FVU, ours / sae-lens's |",
        "|---|---|---|---|---|",
    ]
    keys = ("wall_seconds", "training_seconds")
    for name, ours, theirs in pairs:
        cells = [
            name,
            *(", ".join(f"{one[key]:.0f}" for key in keys) for one in (ours, theirs)),
            ", ".join(f"{theirs[key] / ours[key]:.1f}x" for key in keys),
            f"{ours['fvu'] / theirs['fvu']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nTraining includes the capture that feeds it."


def capture() -> str:
    """Capture against the bare forward pass and other libraries, from the benchmark's raw runs."""
    folder = ROOT / "results" / "capture"
    sys.path.insert(0, str(ROOT / "benchmarks"))
    table = importlib.import_module("capture_table")
    sys.path.pop(0)
    pieces: dict[str, dict[str, Any]] = {}
    for result in table.results(folder):
        pieces.setdefault(result["model"], {})[result["piece"]] = result
    ratios = {
        "core": [
            (table.NULL, table.BACKBONE),
            (table.RAM, table.BACKBONE),
            (table.LOSS, table.FULL),
        ],
        "bridge": [(table.BRIDGE, table.RAM)],
        "runner": [(table.RUNNER, table.DISK)],
    }
    lines = [
        "| model | R_core, null sink | R_core, RAM | R_loss, RAM | TransformerBridge "
        "| CacheActivationsRunner | memory at 16x / 1x the tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    for name, found in pieces.items():
        cells = [name]
        for piece, pairs in ratios.items():
            for mine, theirs in pairs:
                value = table.ratio(found[piece], mine, theirs) if piece in found else None
                if piece == "core" and value is not None and value > CAPTURE_TARGET:
                    missed.append(f"{name} ({mine})")
                digits = "-" if value is None else f"{value:.{2 if piece == 'core' else 1}f}"
                cells.append(digits + "x" * (piece != "core" and value is not None))
        peaks = found["memory"]["peak_bytes"]["ram"] if "memory" in found else None
        cells.append("-" if peaks is None else f"{peaks[-1] / peaks[0]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    told = f", missed by {' and '.join(missed)}" if missed else ""
    return "\n".join(lines) + (
        "\n\nR_core: capture of every layer over the bare forward pass of the backbone; R_loss: "
        "with the loss, over the full forward pass with its loss. Null sink: captured and thrown "
        f"away. Target {CAPTURE_TARGET}{told}. Then how many times longer others take: "
        "`run_with_cache` of the same points against capture into RAM, one CacheActivationsRunner "
        "for each layer against capture to disk. Memory: the peak above the loaded model at 16 "
        "times the tokens, over that at one. Commands, raw figures and disk: "
        "[`results/capture/table.md`](results/capture/table.md)."
    )


def toy() -> str:
    """The toy model's reproduction table, from the largest committed sweep."""
    for name in ("toy_small", "toy_reduced", "toy_demo"):
        folder = ROOT / "results" / name
        if (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text())
            why = f", [why some rows differ](results/{name}/README.md)"
            return (
                f"{(folder / 'reproduction.md').read_text()}\n"
                f"`{summary['command']}`, {summary['n_models']} models, "
                f"{summary['cpu_seconds'] / 60:.0f} CPU minutes; agrees means that the two "
                f"intervals overlap. Figures and numbers in [`results/{name}/`](results/{name}/)"
                f"{why if (folder / 'README.md').exists() else ''}."
            )
    return "*(no committed run yet)*"


def calibration() -> str:
    """Figure and verdicts of the committed calibration."""
    folder = ROOT / "results" / "calibration"
    if not (folder / "summary.json").exists():
        return "*(no committed run yet)*"
    summary = json.loads((folder / "summary.json").read_text())
    lines = [
        "![Estimated against true features per dimension]"
        "(results/calibration/figures/calibration.png)",
        "",
        "| gate | value | limit | |",
        "|---|---|---|---|",
    ]
    for gate in summary["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:+.3f}"
        low, high = gate["limit"]
        verdict = {True: "passed", False: "**failed**", None: "undecided"}[gate["passed"]]
        lines.append(f"| {gate['name']} | {value} | {low:g} to {high:g} | {verdict} |")
    minutes = float(summary["wall_time_seconds"]) / 60
    return "\n".join(lines) + (
        "\n\n`saturation` is N, the level at which counts of growing dictionaries stop; "
        "`saturation_atoms` is N without latents that stand for two others. Undecided: too few "
        "replicates for the gate to speak, whatever the value.\n\n"
        f"{_plain_count(folder)}\n\n"
        f"`{summary['command']}`, {summary['n_replicates']} data sets, "
        f"{minutes:.0f} minutes; every cell in [`results/calibration/`](results/calibration/)."
    )


def _plain_count(folder: Path) -> str:
    """How the count at one dictionary size, which studies quote, did in the same cells."""
    import pandas as pd

    from interp.report.wording import span

    rows = pd.read_parquet(folder / "results.parquet")
    rows = rows[(rows["estimator"] == "reproducible") & rows["value"].notna()]
    ratio = rows["d_sae"] / rows["n_features"]

    def shares(kept: pd.Series) -> str:
        found = rows[kept]
        settled = int((found["converged"] == True).sum())  # noqa: E712
        filled = (100 * found["value"] / found["d_sae"]).tolist()
        return f"{span(filled, '{:.0f}%'.format)} of D ({settled} of {len(found)} converged)"

    exact = rows[(ratio == 2) & (rows["converged"] == True)]  # noqa: E712
    off = (100 * (exact["value"] / exact["n_features"] - 1)).tolist()
    return (
        "The count at one size (`reproducible`), which a study's headline gives, in the same cells "
        f"(synthetic data of width 32): with at most as many latents as true features "
        f"{shares(ratio <= 1)}, with twice as many {shares(ratio == 2)}, with four times and more "
        f"{shares(ratio >= 4)}. A full dictionary "
        f"is what one too small looks like. Converged counts at twice the true number were "
        f"{span(off, '{:+.0f}%'.format)} off it."
    )


def finding(*names: str) -> str:
    """What the first of these studies that is committed says: answer, limits, replies."""
    name = next((n for n in names if (ROOT / "results" / n / "summary.json").exists()), None)
    if name is None:
        return f"*(`interp study {names[0]}` is not committed yet)*"
    from interp.report.answering import answer
    from interp.report.caveats import caveats
    from interp.report.objections import objections
    from interp.report.reading import read_summary
    from interp.report.wording import duration

    data = json.loads((ROOT / "results" / name / "summary.json").read_text())
    summary = read_summary(data)
    said = answer(summary)
    failed = [f"failed: {one['model']}, {one['control']}: {one['error']}"
              for one in data.get("failures", [])]  # fmt: skip
    picture = f"{name}/figures/packing_against_loss.png"
    lines = [f"> {said.first}", ""]
    if (ROOT / "results" / picture).exists():
        lines += [f"![Packing against loss]({picture})", ""]
    for text in said.more:
        lines += [text, ""]
    lines += ["**What limits it, or failed.**", ""]
    lines += [f"- {text}" for text in (*failed, *caveats(summary))] or ["- Nothing."]
    lines += ["", "**What a referee would say, and the reply.**", ""]
    lines += [f"- *{objection}* {reply}" for objection, reply in objections(summary)]
    took = duration(float(data["wall_time_seconds"]))
    lines += ["", f"{_made_by(data, name)}, {took}; everything in [`{name}/`]({name}/)."]
    return "\n".join(lines)


def across_widths() -> str:
    """The ladder: how many features a layer packs per dimension, at every width."""
    return finding("full", "quick")


def constant_width() -> str:
    """The arm: whether loss goes with packing where width cannot be the reason."""
    return finding("referee")


def verdicts() -> str:
    """Every gate of the committed calibration in the words fixed beforehand."""
    file = ROOT / "results" / "calibration" / "summary.json"
    if not file.exists():
        return "*(`interp calibrate` is not committed yet)*"
    summary = json.loads(file.read_text())
    judged = {True: "Passed", False: "**Failed**"}
    decided = [gate for gate in summary["gates"] if gate["passed"] is not None]
    lines = [f"- {judged[gate['passed']]} ({gate['name']}): {gate['verdict']}" for gate in decided]
    if left := [gate for gate in summary["gates"] if gate["passed"] is None]:
        lines.append(f"- {left[0]['verdict']} So are: {', '.join(g['name'] for g in left)}.")
    return "\n".join([*lines, "", f"`{summary['command']}`; [`calibration/`](calibration/)."])


FINDING_BLOCKS = {
    "across-widths": across_widths,
    "constant-width": constant_width,
    "verdicts": verdicts,
}
BLOCKS = {
    "modules": modules,
    "figure": figure,
    "costs": costs,
    "supported": supported,
    "speed": speed,
    "studies": studies,
    "capture": capture,
    "toy": toy,
    "calibration": calibration,
}


def rendered(text: str, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> str:
    """A text with every block made anew; README's by default."""
    for name, make in blocks.items():
        pattern = re.compile(
            rf"(<!-- {name}: generated by `make readme` -->\n).*?(<!-- /{name} -->)", re.DOTALL
        )
        if not pattern.search(text):
            raise SystemExit(f"the text has no block {name!r}")
        start, end = pattern.search(text).groups()  # type: ignore[union-attr]
        block = f"{start}{make()}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
    FINDINGS.write_text(rendered(FINDINGS.read_text(), FINDING_BLOCKS))
    sys.stderr.write("README.md is up to date\n")
