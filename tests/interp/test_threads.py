"""Results that hang on the number of threads asked for, and not on the machine's cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from tiny_study import tiny_study

from interp import study
from interp.machine import threads
from interp.measure import Measurement


def of_blas() -> set[int]:
    """Threads of every BLAS that is loaded; numpy's is."""
    found = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
    assert found
    return found


def test_products_of_torch_and_numpy_get_as_many_as_are_asked_for() -> None:
    assert np.ones(2) @ np.ones(2) == 2
    before = torch.get_num_threads()
    with threadpool_limits(limits=2, user_api="blas"):
        outside = of_blas()
        with threads(1):
            assert of_blas() == {1}
            assert torch.get_num_threads() == 1
        assert of_blas() == outside
        assert torch.get_num_threads() == before


def test_every_part_of_a_study_has_the_studys_threads(
    tmp_path: Path, save_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores and one thread, here as on a cluster, must end with the same tables."""
    config = tiny_study(tmp_path, save_tiny, widths=(16,), twins=(), threads=1)
    seen = []

    def watched(original: Any) -> Any:
        def call(*given: Any) -> Any:
            seen.append((of_blas(), torch.get_num_threads()))
            return original(*given)

        return call

    monkeypatch.setattr(Measurement, "run", watched(Measurement.run))
    monkeypatch.setattr(study, "analyse", watched(study.analyse))
    with threadpool_limits(limits=2, user_api="blas"):
        assert study.run_study(config, tmp_path / "run", quiet=True).failures == []
    assert len(seen) == 6  # loss, streams, pilots, saes, rows, analysis
    assert seen == [({1}, 1)] * 6
