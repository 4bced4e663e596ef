"""A study on another device: all of it goes there, nothing that is counted stays there.

No machine that runs these tests has a GPU. The whole path runs on a pretended one, whose tensors
mix with the CPU's as little as a real one's: what it cannot show is numbers and speed of a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import OnGPU, pretend
from tiny_study import tiny_study

import saes
from interp import cli, plan, resources, spot_counts, study
from interp.budgets import require_fit, require_gpu_memory, require_time
from interp.capture import capture
from interp.config import StudyConfig, parse_config, read_config
from interp.errors import UserError
from interp.graph import Graph
from interp.held_out import HeldOut
from interp.measure import Measurement
from interp.models import load
from interp.plan import Cost, plan_study
from interp.run import CONFIG, Run, RunFolder
from interp.sources import Sources
from interp.splice import ce_loss_recovered
from interp.study import run_study

NOT_HERE = "device 'cuda' is not available here; use cpu"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    """All paths by which activations reach an SAE: both streams, all controls, two kinds of SAE."""
    base = tiny_study(tmp_path_factory.mktemp("family"), save_tiny, widths=(16,))
    [model] = base.models
    more = {"streams": ("contextual", "all"), "shuffled": (model,), "gaussian": (model,)}
    more |= {"other_architectures": ("batchtopk",), "confirm_k": True, "n_seeds": 3}
    return StudyConfig(**(base.model_dump() | more))


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_study(config, tmp_path_factory.mktemp("runs") / "cpu", quiet=True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pretended one."""
    with pretend(monkeypatch):
        yield


def on_cuda(config: StudyConfig, **more: Any) -> StudyConfig:
    return config.model_copy(update={"device": "cuda", **more})


def graph_of(run: Run, config: StudyConfig) -> Graph:
    sources = Sources.read(RunFolder(run.path))
    assert sources is not None
    return Graph(config, RunFolder(run.path), sources)


# The whole path


def test_a_study_on_another_device_finds_what_the_cpu_finds(
    run: Run, config: StudyConfig, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal but for rounding: sums are taken in another order."""
    loaded: list[torch.device] = []
    counted: list[torch.device] = []
    original, estimate = Measurement.run, spot_counts.reproducible_estimate

    def note(self: Measurement, *args: Any) -> None:
        loaded.append(self.model.device)
        original(self, *args)

    def note_rows(dicts: Any, doc_ids: Any, x_held: torch.Tensor, **more: Any) -> Any:
        counted.extend((x_held.device, dicts[0].W_dec.device, dicts[0].acts.values.device))
        return estimate(dicts, doc_ids, x_held, **more)

    monkeypatch.setattr(Measurement, "run", note)
    monkeypatch.setattr(spot_counts, "reproducible_estimate", note_rows)
    there = run_study(on_cuda(config), tmp_path / "cuda", quiet=True)
    assert there.failures == []
    assert {device.type for device in loaded} == {"cuda"}
    assert {device.type for device in counted} == {"cpu"}, "statistics stay there"
    place = ["control", "quantity", "hook_point", "about", "d_sae", "k_rule", "k", "architecture",
             "role", "seed"]  # fmt: skip
    both = run.results.merge(there.results, on=place, how="outer", suffixes=("", "_there"))
    assert len(both) == len(run.results) == len(there.results)
    for quantity, tolerance in (("fvu", 1e-3), ("l0", 0.02), ("loss_nats_per_token", 1e-5),
                                ("ce_loss_sae", 1e-3), ("variance_share_token", 1e-5)):  # fmt: skip
        rows = both[both.quantity == quantity]
        assert len(rows) > 0, quantity
        assert (rows.value - rows.value_there).abs().max() < tolerance, quantity
    trained = there.saes(config.models[0])
    assert {tuple(sae.metadata["computed_by"]) for sae in trained.values()} == {("cuda, stacked",)}
    manifest = json.loads((there.path / "manifest.json").read_text())
    assert manifest["device"] == "cuda"
    assert [name.endswith(", A pretended GPU") for name in manifest["processors"]] == [True]
    assert there.config.device == "cuda"
    assert not any("kinds of processor" in warning for warning in there.summary["warnings"])


def test_rows_on_the_device_are_those_of_the_cpu(
    run: Run, config: StudyConfig, gpu: None, tiny_tokens: Any
) -> None:
    """Bit for bit, for each stream: a subtraction is the same wherever it is done."""
    here = part_of(run, config)
    there = part_of(run, on_cuda(config))
    blocks = here._blocks(config.held_out_tokens, "held_out")
    for spot in here.spots:
        x = HeldOut.of(here.model, blocks, spot, here.streams).x
        y = HeldOut.of(there.model, blocks, spot, there.streams).x
        assert (type(x), type(y)) == (torch.Tensor, OnGPU)
        assert torch.equal(x, y.cpu())
    points = list(dict.fromkeys(spot.hook_point for spot in here.spots))
    chunks = list(capture(here.model, blocks, points))
    moments = [one.streams.with_gaussians(chunks, here.spots).gaussians for one in (here, there)]
    for stream, gaussian in moments[0].items():
        assert torch.equal(gaussian.root, moments[1][stream].root)


def test_what_is_left_behind_is_noticed(run: Run, config: StudyConfig, gpu: None) -> None:
    """The pretended device refuses what a real one does; else the tests above would say nothing."""
    there = part_of(run, on_cuda(config))
    blocks = there._blocks(config.held_out_tokens, "held_out")
    spot = there.spots[0]
    assert spot.about == "contextual"
    sae = saes.load(next(iter((run.path / "saes").glob("*/*contextual/*"))))
    held = HeldOut.of(there.model, blocks, spot, there.streams)
    assert sae.to("cuda")(held.x).device.type == "cuda"
    with pytest.raises(RuntimeError, match="same device"):
        sae(held.x)
    with pytest.raises(RuntimeError, match="same device"):
        ce_loss_recovered(there.model, blocks, spot.hook_point, lambda x, ids, pos: sae(x))
    with pytest.raises(TypeError, match="numpy"):
        held.x.numpy()
    with pytest.raises(RuntimeError, match="deterministic"):
        held.x.index_add_(0, torch.zeros(1, dtype=torch.int64, device="cuda"), held.x[:1])
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def part_of(run: Run, config: StudyConfig) -> Measurement:
    """The model's, with what the finished study has for it."""
    from interp.corpora import load_text
    from interp.progress import Progress

    graph = graph_of(run, config)
    corpus = load_text(config.text)
    return Measurement(graph, config.models[0], "trained", corpus, Progress(1.0, quiet=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_study_on_a_gpu_finds_what_the_cpu_finds(
    run: Run, config: StudyConfig, tmp_path: Path
) -> None:
    there = run_study(on_cuda(config), tmp_path / "cuda", quiet=True)
    assert there.failures == []
    for quantity, tolerance in (("fvu", 1e-3), ("loss_nats_per_token", 1e-4)):
        a, b = (one.results[one.results.quantity == quantity].value for one in (run, there))
        assert abs(a.to_numpy() - b.to_numpy()).max() < tolerance


# The setting


def test_the_cpu_is_what_nobody_has_to_ask_for(run: Run, config: StudyConfig) -> None:
    """And its units are those of versions that had no choice."""
    assert StudyConfig(models=("a",)).device == "cpu"
    text = (run.path / CONFIG).read_text()
    assert "device: cpu\n" in text
    older = {k: v for k, v in config.model_dump().items() if k not in ("device", "units_per_gpu")}
    assert parse_config(older, "an older file") == config
    for unit in graph_of(run, config).units:
        there = graph_of(run, on_cuda(config)).settings(unit)
        assert there.pop("device") == "cuda"
        assert there == graph_of(run, config).settings(unit), "nothing else"
    shared = graph_of(run, on_cuda(config, units_per_gpu=4))
    assert [shared.inputs(u) for u in shared.units] == [
        graph_of(run, on_cuda(config)).inputs(u) for u in shared.units
    ]


def test_a_wrong_device_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("models: [a]\n\ndevice: gpu\n")
    with pytest.raises(UserError, match=r"study\.yaml, line 3: device: .*'cpu', 'cuda' or 'auto'"):
        read_config(file)
    file.write_text("models: [a]\nunits_per_gpu: 0\n")
    with pytest.raises(UserError, match=r"study\.yaml, line 2: units_per_gpu: "):
        read_config(file)


def test_auto_is_settled_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudyConfig(models=("a",), device="auto")
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert config.resolved().device == expected
        assert StudyConfig(models=("a",)).resolved().device == "cpu"


def test_a_study_that_is_resumed_stays_where_it_began(
    run: Run, config: StudyConfig, gpu: None, tmp_path: Path
) -> None:
    folder = RunFolder(run.path)
    assert folder.claim(config.model_copy(update={"device": "auto"})).device == "cpu"
    with pytest.raises(UserError, match=r"another study \(device is 'cpu' there, 'cuda' here\)"):
        folder.claim(on_cuda(config))
    begun = RunFolder(tmp_path / "new").claim(config.model_copy(update={"device": "auto"}))
    assert begun.device == "cuda"


def test_a_gpu_that_is_not_there_is_one_line_before_any_work(
    config: StudyConfig,
    no_gpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    (tmp_path / "study.yaml").write_text(config.to_yaml())
    line = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        for name in ("load", "load_text"):
            patch.setattr(study, name, never)
        assert cli.main([*line, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == f"interp: {NOT_HERE}\n"
    # Begun where there was one, by a line that left it to the machine.
    RunFolder(tmp_path / "out").claim(on_cuda(config))
    assert cli.main([*line, "--device", "auto"]) == 2
    assert capsys.readouterr().err == f"interp: {NOT_HERE}\n"
    assert [p.name for p in (tmp_path / "out").iterdir()] == [CONFIG]


# The plan


@pytest.fixture
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)


def test_a_plan_has_no_times_of_a_device_that_is_not_here(
    config: StudyConfig,
    no_gpu: None,
    short_probes: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config.model_copy(update={"loss_only_models": (), "shuffled": (), "gaussian": ()})
    here, there = plan_study(config)[:-1], plan_study(on_cuda(config))[:-1]
    for a, b in zip(here, there, strict=True):
        assert (a.device, a.reason, a.gpu_bytes) == ("cpu", None, 0)
        assert a.seconds is not None
        assert (b.device, b.seconds) == ("cuda", None)
        assert (a.what, a.flops, a.n_bytes, a.n_units) == (b.what, b.flops, b.n_bytes, b.n_units)
        assert b.gpu_bytes > 4 * load(config.models[0]).n_params
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    line = ["plan", str(tmp_path / "study.yaml"), "--out", str(tmp_path), "--device", "cuda"]
    assert cli.main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["total"]["seconds"] is None
    assert found["parts"][0]["reason"] == "not measured, there is no cuda here"
    assert cli.main(line) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "on device cuda" in told
    assert "minutes: not measured, there is no cuda here" in told
    assert told.count("not measured") == 1 + len(there) + 1, "said, each part, and the total"
    with pytest.raises(UserError, match="time on cuda is not measured"):
        require_time(there, on_cuda(config, max_hours=1.0))
    require_fit(there, on_cuda(config), tmp_path)


def test_a_plan_measures_the_device_that_it_is_for(
    config: StudyConfig, gpu: None, short_probes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    original, train = plan.run_blocks, saes.train

    def note(model: Any, *args: Any, **kwargs: Any) -> Any:
        devices.append(model.device.type)
        return original(model, *args, **kwargs)

    def note_training(*args: Any, **kwargs: Any) -> Any:
        found = train(*args, **kwargs)
        devices.append(found[0].W_dec.device.type)
        return found

    monkeypatch.setattr(plan, "run_blocks", note)
    monkeypatch.setattr(saes, "train", note_training)
    config = config.model_copy(update={"shuffled": (), "gaussian": (), "twins": ()})
    for where, one in (("cuda", on_cuda(config)), ("cpu", config)):
        devices.clear()
        cost = plan_study(one)[0]
        assert set(devices) == {where}
        assert cost.seconds is not None
        assert (cost.reason is None) == (where == "cpu")
    assert "nobody has timed" in (plan_study(on_cuda(config))[0].reason or "")


def test_a_card_that_is_too_small_is_refused(config: StudyConfig, gpu: None) -> None:
    """The pretended one has 16 GiB, a quarter of it for stacks."""
    room = (1 << 34) * 3 // 4
    small, large = (
        Cost(what, 0, 0, None, gpu_bytes=n) for what, n in (("a", room), ("b", room + 1))
    )
    both = on_cuda(config, models=("a", "b"))
    require_gpu_memory([small], both)
    with pytest.raises(UserError, match=rf"b needs {room + 1:,} bytes of the GPU's.*--models a wo"):
        require_gpu_memory([small, large], both)


# The cluster


def test_what_a_unit_asks_of_a_cluster(config: StudyConfig) -> None:
    assert resources.needs(config) == {"CPU": 1, "GPU": 0}
    assert resources.needs(on_cuda(config, threads=4)) == {"CPU": 4, "GPU": 1}
    assert resources.needs(on_cuda(config, units_per_gpu=4))["GPU"] == 0.25
    head, node, fast = {}, {"CPU": 8.0}, {"CPU": 2.0, "GPU": 2.0}
    resources.require({"CPU": 8, "GPU": 0}, [head, node, fast])
    resources.require({"CPU": 2, "GPU": 0.25}, [head, node, fast])
    with pytest.raises(UserError, match="no machine of the Ray cluster has one"):
        resources.require({"CPU": 1, "GPU": 1}, [head, node])
    with pytest.raises(UserError, match=r"4 threads and no machine with a GPU .* more than 2 CPUs"):
        resources.require({"CPU": 4, "GPU": 1}, [head, node, fast])
