"""The ray executor on a local cluster of several nodes: same tables, and what a death costs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import tiny_study

from interp import ray_executor
from interp.config import StudyConfig
from interp.corpora import load_text
from interp.errors import UserError
from interp.executor import Failure
from interp.graph import Graph
from interp.progress import Progress
from interp.run import Run, RunFolder
from interp.sources import Sources
from interp.study import run_study
from interp.units import Unit, running_file

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray's own, on the way in and out.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    """Four local directories of increasing width."""
    return tiny_study(tmp_path_factory.mktemp("family"), save_tiny, widths=(16, 24, 32, 40))


@pytest.fixture(scope="module")
def local(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_study(config, tmp_path_factory.mktemp("runs") / "local", quiet=True)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that takes no units, and one node of one CPU; more can be added."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def on(cluster: Any, config: StudyConfig) -> StudyConfig:
    return config.model_copy(update={"executor": "ray", "address": cluster.address})


def test_two_nodes_give_the_tables_of_one_process(
    cluster: Any, config: StudyConfig, local: Run, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    run = run_study(on(cluster, config), tmp_path / "ray", quiet=True)
    assert not ray.is_initialized()
    table = "results.parquet"
    assert (run.path / table).read_bytes() == (local.path / table).read_bytes()
    assert run.failures == []
    # The same study, wherever it runs: nothing is left to do here.
    again = run_study(config, run.path, quiet=True)
    assert again.summary == run.summary


def test_a_node_that_is_killed_costs_its_units_alone(
    cluster: Any, config: StudyConfig, local: Run, tmp_path: Path
) -> None:
    victim = cluster.add_node(num_cpus=1)
    out = tmp_path / "ray"
    killed: list[int] = []

    def kill_when_under_way() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            records = list(out.glob("work/*/units/*.json"))
            if len(records) >= 3 and list(out.glob("work/*/units/*.running")):
                cluster.remove_node(victim, allow_graceful=False)
                killed.append(len(records))
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_when_under_way)
    thread.start()
    run = run_study(on(cluster, config), out, quiet=True)
    thread.join()
    assert killed
    assert run.failures == []
    table = "results.parquet"
    assert (run.path / table).read_bytes() == (local.path / table).read_bytes()


def _dies(job: str, unit: Unit) -> Failure | None:
    """In place of a unit that takes more memory than there is: the kernel's own answer."""
    if unit.kind == "pilots" and unit.model.endswith("w24"):
        os.kill(os.getpid(), signal.SIGKILL)
    return ray_executor._worker(job).run(unit)


def test_a_worker_that_dies_is_reported_with_its_unit(
    cluster: Any, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_do", _by_value(_dies))
    monkeypatch.setattr(ray_executor, "RETRIES", 0)
    fewer = config.model_copy(update={"models": config.models[:2], "twins": ()})
    run = run_study(on(cluster, fewer), tmp_path / "ray", quiet=True)
    [lost] = run.failures
    assert (Path(lost["model"]).name, lost["unit"]) == ("w24", "pilots")
    assert "its worker died" in lost["error"]
    assert "memory" in lost["error"]
    assert set(run.packing["model"]) == {config.models[0]}


def _greedy(job: str, unit: Unit) -> Failure | None:
    """Asks for 256 TB in the middle of one unit."""
    import torch

    worker = ray_executor._worker(job)
    original = worker._do
    if unit.kind == "pilots" and unit.model.endswith("w24"):
        worker._do = lambda unit: torch.empty(1 << 46)  # type: ignore[assignment, return-value]
    try:
        return worker.run(unit)
    finally:
        worker._do = original  # type: ignore[method-assign]


def test_a_worker_out_of_memory_is_reported_with_its_unit(
    cluster: Any, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_do", _by_value(_greedy))
    fewer = config.model_copy(update={"models": config.models[:2], "twins": ()})
    run = run_study(on(cluster, fewer), tmp_path / "ray", quiet=True)
    [lost] = run.failures
    assert (Path(lost["model"]).name, lost["unit"]) == ("w24", "pilots")
    assert "memory" in lost["error"]


def _by_value(function: Any) -> Any:
    """This file is no module that a worker could import."""
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function


def test_a_unit_wider_than_every_machine_is_refused(
    cluster: Any, config: StudyConfig, tmp_path: Path
) -> None:
    wide = on(cluster, config).model_copy(update={"threads": 3})
    with pytest.raises(UserError, match=r"takes 3 threads and no machine .* more than 1 CPU"):
        run_study(wide, tmp_path / "ray", quiet=True)


def _tells(job: str, unit: Unit) -> Failure | None:
    """In place of a unit: what Ray gave it, and when."""
    began = time.time()
    time.sleep(1.0)
    given = ray.get_runtime_context().get_assigned_resources()
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    told = {"given": given, "cards": cards, "began": began, "ended": time.time()}
    return Failure(unit, json.dumps(told))


@pytest.mark.parametrize(
    ("asked", "given", "at_once"),
    [
        ({"device": "cuda"}, {"CPU": 1.0, "GPU": 1.0}, 2),
        ({"device": "cuda", "units_per_gpu": 2}, {"CPU": 1.0, "GPU": 0.5}, 4),
        ({}, {"CPU": 1.0}, 6),
    ],
)
def test_a_unit_is_given_the_gpu_that_it_asks_for(
    cluster: Any,
    config: StudyConfig,
    local: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    given: dict[str, float],
    at_once: int,
) -> None:
    """A machine of 6 CPUs that says it has 2 GPUs; nothing is computed on them."""
    cluster.add_node(num_cpus=5, num_gpus=2)
    sources = Sources.read(RunFolder(local.path))
    assert sources is not None
    monkeypatch.setattr(ray_executor, "_do", _by_value(_tells))
    here = on(cluster, config).model_copy(update=asked)
    graph = Graph(here, RunFolder(tmp_path), sources)
    executor = ray_executor.RayExecutor(graph, load_text(config.text), Progress(1.0, quiet=True))
    units = graph.units[:6]
    try:
        for unit in units:
            executor.submit(unit)
        found = [executor.next()[1] for _ in units]
    finally:
        executor.close()
    told = [json.loads(one.error) for one in found if one is not None]
    assert [one["given"] for one in told] == [given] * 6
    cards = {one["cards"] for one in told}
    assert cards <= {"0", "1"} if "GPU" in given else cards == {""}
    for one in told:
        beside = [o for o in told if o["began"] <= one["began"] < o["ended"]]
        assert len(beside) <= at_once
        if given.get("GPU") == 1:
            assert len({o["cards"] for o in beside}) == len(beside), "a card of its own"


def test_a_cluster_without_gpus_is_one_line(
    cluster: Any, config: StudyConfig, tmp_path: Path
) -> None:
    """The process that starts the study needs none itself."""
    there = on(cluster, config).model_copy(update={"device": "cuda"})
    with pytest.raises(UserError, match="takes a GPU and no machine of the Ray cluster has one"):
        run_study(there, tmp_path / "ray", quiet=True)
    assert not ray.is_initialized()


def test_without_an_address_a_cluster_of_its_own_is_started(
    config: StudyConfig, local: Run, tmp_path: Path
) -> None:
    alone = config.model_copy(update={"executor": "ray"})
    run = run_study(alone, tmp_path / "ray", quiet=True)
    assert not ray.is_initialized()
    table = "results.parquet"
    assert (run.path / table).read_bytes() == (local.path / table).read_bytes()


def test_no_cluster_is_one_line(config: StudyConfig, tmp_path: Path) -> None:
    nowhere = config.model_copy(update={"executor": "ray", "address": "auto"})
    with pytest.raises(UserError, match="no Ray cluster at 'auto'"):
        run_study(nowhere, tmp_path / "ray", quiet=True)


def test_a_worker_of_another_version_is_refused(
    config: StudyConfig, local: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster: what the worker's side says."""
    from dataclasses import asdict

    from interp import provenance

    monkeypatch.chdir(tmp_path)  # where a worker goes, this process comes back from
    sources = Sources.read(RunFolder(local.path))
    assert sources is not None
    job = {
        "config": config.model_dump(mode="json"),
        "folder": str(local.path),
        "root": str(local.path),
        "sources": asdict(sources),
        "provenance": provenance.provenance(sources.text_sha256) | {"torch": "1.0"},
    }
    unit = Graph(config, RunFolder(local.path), sources).units[0]
    failure = ray_executor._do(json.dumps(job), unit)
    assert failure is not None
    assert "the driver 1.0; install the same everywhere" in failure.error
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blind = job | {"config": config.model_dump(mode="json") | {"device": "cuda"}}
    failure = ray_executor._do(json.dumps(blind), unit)
    assert failure is not None
    assert f"its torch {torch.__version__} finds none" in failure.error
    job["provenance"] = provenance.provenance(sources.text_sha256)
    assert ray_executor._do(json.dumps(job), unit) is None
    assert not running_file(RunFolder(local.path), unit).exists()
