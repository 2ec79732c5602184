"""The allocator of a training process, judged by the kernel's count of page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from ccnn_zoo.train import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory()

def step():
    feature_maps = [torch.ones(1_000_000) for _ in range(30)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told")
def test_steps_after_the_first_take_no_new_pages():
    faults = {}
    for choice in ("default", "keep"):
        run = subprocess.run([sys.executable, "-c", STEPS, choice], capture_output=True, text=True, check=True)
        kept, count = run.stdout.split()
        faults[choice] = int(count)
    if kept == "False":
        pytest.skip("this C library cannot be told")
    # How many pages a fault brings is the kernel's choice (huge pages); the default has one per feature map at least.
    assert faults["default"] >= 5 * 30
    assert faults["keep"] < faults["default"] // 10
