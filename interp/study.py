"""The pipeline: models and text -> units -> one tidy table -> summary -> report.

The only module that sees every stage. Units that are done are found and not redone, so the same
line resumes an interrupted study, in this clone or in another that sees the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from interp import durable
from interp.analysis import analyse, edited_table
from interp.config import StudyConfig
from interp.constant_width import ARM
from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.executor import Executor, Failure, LocalExecutor, Worker, run_units
from interp.graph import Graph
from interp.machine import threads
from interp.models import load, require_device
from interp.progress import Progress
from interp.provenance import provenance
from interp.recorded_lever import recorded_levers
from interp.run import Run, RunFolder, open_run, write_text
from interp.sources import ModelSource, Sources
from interp.spots import require_hook_points
from interp.stopwatch import seconds_spent, sitting
from interp.tokens import Split, tokens
from interp.units import record_file

SPLITS: tuple[Split, ...] = ("train", "held_out")
Executors = Callable[[Graph, Corpus, Progress], Executor]


def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    command: str | None = None,
    quiet: bool = False,
    redo: bool = False,
) -> Run:
    """Run a study into `out`, or finish one that was interrupted there.

    `out` may be new, empty, or hold this same study, or a smaller one: what is there stays, and
    more models or seeds add their own units. Whatever else has changed since (a setting, the text,
    a model, the code, an artifact) is refused, unless `redo` says to do again what depends on it.

    Units that fail do not stop the others: see `Run.failures`. Raises UserError for anything wrong
    with the input, before any long work where that can be known: every model is loaded once first.
    Raises StudyFailedError where no model could be measured.
    """
    folder = RunFolder(Path(out))
    _check_device(config)
    corpus = load_text(config.text)
    sources = _check_models(config, corpus)
    config = folder.claim(config, redo=redo)
    with durable.only_writer(folder.root):
        config = folder.claim(config, redo=redo)  # again: a study begun at the same moment
        _check_device(config)  # of a study begun elsewhere, where `auto` found another
        graph = Graph(config, folder, sources)
        if redo:
            _forget(graph)
        else:
            _refuse_changes(graph)
        sources.write(folder)
        write_text(folder.under_way, config.to_yaml())
        progress = Progress(sum(map(graph.work, graph.units)), quiet=quiet)
        left = [unit for unit in graph.units if not graph.is_done(unit)]
        failures: list[Failure] = []
        if left:
            with sitting(folder.root):
                executor = _executors(config)(graph, corpus, progress)
                failures = run_units(graph, left, executor, progress)
        progress.at("fits and report")
        command = command or f"interp study {config.preset}"
        with threads(config.threads):
            analyse(graph, corpus, command, failures)
        progress.close(f"done; measuring took {seconds_spent(folder.root) / 60:.1f} minutes")
    return open_run(folder.root)


def _executors(config: StudyConfig) -> Executors:
    if config.executor == "ray":
        from interp.ray_executor import RayExecutor

        return RayExecutor
    return lambda graph, corpus, progress: LocalExecutor(Worker(graph, corpus, progress))


def _check_device(config: StudyConfig) -> None:
    """In this process; elsewhere it is asked where the units run, which needs Ray."""
    if config.executor == "ray":
        from interp.ray_executor import require_ray

        require_ray()
    elif config.device != "auto":
        require_device(config.device)


def _check_models(config: StudyConfig, corpus: Corpus) -> Sources:
    """What the study depends on beside its config.

    Each model is loaded and reads a little of both splits, so that a bad one fails before anything
    is written.
    """
    known = {}
    names = (*config.models, *config.loss_only_models)
    recorded_levers(names, in_arm=config.arm == ARM)
    for name in names:
        model = load(name)
        if model.d_model < 8 and name in config.models:
            raise UserError(
                f"{name}: d_model {model.d_model} is too narrow for SAEs; use 8 or more"
            )
        if name in config.models:
            require_hook_points(config, model)
        for split in SPLITS:
            tokens(corpus, model, n_tokens=2 * model.n_ctx, split=split, seed=config.seed)
        known[name] = ModelSource.of(model)
        del model
    return Sources(corpus.sha256, known)


def _refuse_changes(graph: Graph) -> None:
    """Raise UserError where units that are done would be thrown away, naming what has changed."""
    root = graph.folder.root
    if Sources.read(graph.folder) is None and any((root / "work").glob("*/model.json")):
        raise UserError(
            f"{root} was measured by a version that kept no records of its units; choose another "
            "--out, or measure it again with --redo"
        )
    if table := edited_table(root):
        raise UserError(
            f"{root}: {table} is not what the study wrote; put it back, delete it, or have all "
            "tables written again with --redo"
        )
    for unit in graph.units:
        state = graph.state(unit, verify=True)
        if state.what == "edited":
            raise UserError(
                f"{root}: {unit}: {state.why}; put it back, or measure it again with --redo"
            )
        # What grew, or follows from that, is redone unasked.
        if state.what == "stale" and state.changed in _foreign():
            raise UserError(
                f"{root}: {unit.label} was measured with {state.why.replace(' was ', ' ', 1)}; "
                "go back to that, choose another --out, or measure again what depends on it with "
                "--redo"
            )


def _foreign() -> set[str]:
    """Inputs that no config names: another value is no growth of the study."""
    return {*provenance(""), "weights_sha256", "config_sha256", "tokenizer_sha256"}


def _forget(graph: Graph) -> None:
    """Drop records of what is not as it was, and parts that are no longer in the study.

    At once, so that the redoing resumes like any other study.
    """
    root = graph.folder.root
    (root / "summary.json").unlink(missing_ok=True)
    for unit in graph.units:
        state = graph.state(unit, verify=True)
        if state.what == "edited" or state.changed:
            record_file(graph.folder, unit).unlink()
    # A version without records left its own files.
    known = Sources.read(graph.folder) is not None
    labels = {unit.label for unit in graph.units} if known else set()
    for above in (root / "work", root / "saes"):
        for part in above.glob("*/"):
            if part.name not in labels:
                shutil.rmtree(part)
