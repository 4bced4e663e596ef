"""The machine that a result was made on, as far as the result depends on it."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def processor(device: str) -> str:
    """The CPU's name, followed by the GPU's for a unit that ran on one."""
    if device == "cpu":
        return cpu_name()
    import torch  # which takes a second

    return f"{cpu_name()}, {torch.cuda.get_device_name()}"


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """So many for torch, and for numpy's matrix products inside.

    Their last bits depend on the number of threads. numpy's BLAS takes all cores whatever torch
    was told, so that the same study would end otherwise on a machine with more of them.
    """
    import torch  # which takes a second
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(limits=n_threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def peak_memory_bytes() -> int:
    """Of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak * (1 if sys.platform == "darwin" else 1024)
