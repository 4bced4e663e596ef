"""Units as tasks of a Ray cluster, which does scheduling, retries and transport.

The driver holds the study's folder and hands out what is ready; workers leave artifacts in that
folder, which every machine sees under the same path, and send back one line. A task that is run
twice finds its unit done, so a machine that dies costs what was under way on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from interp import resources
from interp.config import StudyConfig
from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.executor import Failure, Worker
from interp.graph import Graph, short
from interp.progress import Progress
from interp.provenance import provenance
from interp.run import RunFolder
from interp.sources import Sources
from interp.units import Unit

RETRIES = 3
"""Of a unit whose worker or machine died. An error of the unit itself is not tried again."""
OUT_OF_MEMORY_RETRIES = 1
"""Ray counts these apart, and by default without end."""
POLL_SECONDS = 1.0


def require_ray() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        return import_module("ray")
    except ImportError:
        raise UserError(
            "executor ray needs Ray; pip install 'ray>=2.40,<3', or use --executor local"
        ) from None


class RayExecutor:
    """Tasks of `config.address`'s cluster, or of one started here for as long as this lives."""

    slots = sys.maxsize

    def __init__(self, graph: Graph, corpus: Corpus, progress: Progress) -> None:
        ray = require_ray()
        self._ray, self._graph, self._progress = ray, graph, progress
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_task_oom_retries", str(OUT_OF_MEMORY_RETRIES))
        config = graph.config
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(
                    address=config.address or "local",  # not one that happens to run here
                    include_dashboard=False if config.address is None else None,
                    log_to_driver=False,
                    logging_level="error",
                )
            except ConnectionError as error:
                raise UserError(
                    f"no Ray cluster at {config.address!r} ({_line(error)}); start one with `ray "
                    "start --head`, or leave --address out to run on this machine"
                ) from None
        needs = resources.needs(config)
        try:
            resources.require(needs, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        except UserError:
            self.close()
            raise
        # Told to every worker once: its process keeps text and model for the units after.
        told = {
            "config": config.model_dump(mode="json"),
            "folder": os.getcwd(),
            "root": str(graph.folder.root.resolve()),
            "sources": asdict(graph.sources),
            "provenance": provenance(corpus.sha256),
        }
        self._job = ray.put(json.dumps(told))
        # Libraries read these when they are imported, before a unit can set its threads.
        read = {"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"}
        # Ray ends a worker that had a GPU after its unit, so the next one may get another card.
        self._task = ray.remote(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"],
            max_retries=RETRIES, runtime_env={"env_vars": read},
        )(_do)  # fmt: skip
        self._running: dict[Any, Unit] = {}

    def submit(self, unit: Unit) -> None:
        self._running[self._task.options(name=str(unit)).remote(self._job, unit)] = unit

    def next(self) -> tuple[Unit, Failure | None]:
        """An error of Ray itself (worker killed, out of memory, machine lost) is the unit's."""
        done: list[Any] = []
        while not done:
            done, _ = self._ray.wait(list(self._running), timeout=POLL_SECONDS)
            n, first = len(self._running), next(iter(self._running.values()))
            self._progress.at(f"{n} units with Ray, the first {first}")
        unit = self._running.pop(done[0])
        try:
            return unit, self._ray.get(done[0])
        except self._ray.exceptions.OutOfMemoryError as error:
            failure = Failure(unit, f"out of memory: {_line(error)}", str(error))
        except self._ray.exceptions.RayError as error:
            line = f"its worker died, {RETRIES} retries included; a lack of memory does that: "
            failure = Failure(unit, line + _line(error), str(error))
        failure.write(self._graph)
        return unit, failure

    def close(self) -> None:
        """Kill what runs; a cluster that others started goes on."""
        if not self._ray.is_initialized():
            return
        for reference in getattr(self, "_running", {}):
            self._ray.cancel(reference, force=True)
        if self._started:
            self._ray.shutdown()


def _do(job: str, unit: Unit) -> Failure | None:
    """In a worker."""
    try:
        return _worker(job).run(unit)
    except UserError as error:  # of the worker: an error of the unit is caught where it is run
        return Failure(unit, str(error))


@lru_cache(maxsize=1)
def _worker(job: str) -> Worker:
    """Raises UserError where this machine would compute something else than the driver's."""
    told = json.loads(job)
    with contextlib.suppress(OSError):  # names of models and text may be relative to it
        os.chdir(told["folder"])
    config = StudyConfig.model_validate(told["config"])
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"a worker has a GPU of Ray's and its torch {torch.__version__} finds none; install "
            "torch's CUDA build on every machine"
        )
    corpus = load_text(config.text)
    here = provenance(corpus.sha256)
    for key, there in told["provenance"].items():
        if here[key] != there:
            raise UserError(
                f"a worker has {key} {short(here[key])} and the driver {short(there)}; install the "
                "same everywhere"
            )
    graph = Graph(config, RunFolder(Path(told["root"])), Sources.from_json(told["sources"]))
    return Worker(graph, corpus, Progress(1.0, quiet=True))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
