"""What uncertainty costs: the same ResNet-18 with K branches, files with and without its numbers, side by side.

python scripts/bench_inference.py --uncertainty 9

Writes docs/uncertainty_cost.md. Rounds alternate between all ways, as in bench_inference.py.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from bench_machine import machine
from bench_rounds import Way, between, ratios, verdict
from documents import write

from ccnn_zoo import export, runtime
from ccnn_zoo.uncertainty import fit

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "uncertainty_cost.md"
BATCH, BRANCHES, HELD_OUT, SEED = 32, 2, 200, 0
AIM = 1.02
"""At most 2 % more time at batch 32."""


def measure(rounds: int, threads: int, output: Path = DOCUMENT) -> None:
    """Measure, and write the document."""
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(Path(folder), threads)
        for _ in range(rounds + 1):
            for way in ways:
                way.timed()
    for way in ways:  # the first round warms up
        del way.wall[0], way.processor[0]
    write(output, _document(ways, threads))


def _ways(folder: Path, threads: int) -> list[Way]:
    """Return what is measured; each is compared with the first of its kind."""
    torch.manual_seed(SEED)
    model = timm.create_model("ccnn_resnet18", branches=BRANCHES).eval()
    noise = np.random.default_rng(SEED)
    classes = noise.integers(0, 1000, HELD_OUT)
    logits = noise.normal(size=(HELD_OUT, 1000))
    numbers = fit(logits, classes, logits + noise.normal(size=(BRANCHES, HELD_OUT, 1000)))
    files = {name: folder / f"{name}.onnx" for name in ("plain", "branches", "numbers", "outputs")}
    export.to_onnx(model, files["plain"])
    export.to_onnx(model, files["branches"], branch_outputs=True)
    export.add_confidence(files["plain"], numbers, files["numbers"])
    export.add_confidence(files["branches"], numbers, files["outputs"], outputs=True)
    images = noise.normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    pictures = list(noise.integers(0, 256, (BATCH, 256, 256, 3), np.uint8))
    loaded = {name: runtime.load(file, device="cpu", threads=threads, batch_size=BATCH) for name, file in files.items()}
    asked = {"coverage": 0.95, "max_risk": 0.05}
    return [
        Way("predict", "file without numbers", lambda: loaded["plain"].predict(images)),
        Way("predict", "file with numbers, not asked", lambda: loaded["numbers"].predict(images)),
        Way("predict", "the graph gives all outputs", lambda: loaded["outputs"].predict(images)),
        Way("classify", "file without numbers", lambda: loaded["plain"].classify(pictures)),
        Way("classify", "file with numbers: entropy, percentile", lambda: loaded["numbers"].classify(pictures)),
        Way("classify", "sets and decisions too", lambda: loaded["numbers"].classify(pictures, **asked)),
        Way("classify", "of K branches too, all outputs", lambda: loaded["outputs"].classify(pictures, **asked)),
    ]


def _document(ways: list[Way], threads: int) -> list[str]:
    rows = []
    for way in ways:
        base = next(one for one in ways if one.network == way.network)
        found = [between(ratios(way, base, clock)) for clock in ("wall", "processor")]
        said = " | ".join(f"{median:.3f} ({low:.3f} to {high:.3f})" for low, median, high in found)
        judged = "" if way is base else verdict(found, AIM, least=False)
        rows.append(f"| {way.network} | {way.engine} | {1000 * min(way.wall):.0f} | {said} | {judged} |")
    return [
        "# What uncertainty costs",
        "",
        f"Written by `scripts/bench_inference.py --uncertainty` on {machine()}, python {platform.python_version()}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}. ResNet-18, K={BRANCHES}, 1,000 classes, "
        f"224x224, fp32, batch {BATCH}, {threads} thread{'s' * (threads > 1)}, {len(ways[0].wall)} rounds of one run "
        f"each, load {os.getloadavg()[0]:.0f} at the end. Ratios to the first row of the same kind in the same round: "
        "median, and between which the median lies by 95 % (of few rounds, all). With one thread processor time hardly "
        f"depends on the load, and is the figure to trust. The aim is at most {AIM}.",
        "",
        "| call | what | fastest, ms | ratio by the clock | ratio by processor time | aim |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
