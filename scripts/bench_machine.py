"""What a benchmark says about the machine it ran on, and the most that this machine can do."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor()}, {cores} cores"


def gemm_seconds(size: int = 1536) -> float:
    """Return the processor time of one float32 matrix product of this size (2 * size**3 operations) in torch."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    start = time.process_time()
    torch.mm(left, right, out=out)
    return time.process_time() - start
