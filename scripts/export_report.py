"""Write the table of docs/export.md: the shipped checkpoints in every precision, on their real test images.

    CCNN_TEST_DATA=FOLDER python scripts/export_report.py

Needs MNIST/ and cifar10-jpeg.tar.xz there. Times of the forms are measured side by side in this run.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from documents import write_between
from real_data import real_data

import ccnn_zoo  # noqa: F401, registers the networks
from ccnn_zoo import export
from ccnn_zoo.train import evaluation_batches, load_data

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "export.md"
CHECKPOINTS = {
    "ccnn_resnet18_cifar.mnist": "mnist:{}",
    "ccnn_resnet18_cifar.cifar10": "cifar10:{}/cifar10-jpeg.tar.xz",
    "ccnn_resnet18_cifar.mirror_cifar10": "cifar10:{}/cifar10-jpeg.tar.xz",
}
PRECISIONS = ("fp32", "fp16", "int8")
INT8_IMAGES = 512


def main() -> None:
    """Export, and write what the reports say between the two marks of the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=real_data(), help="folder of the data sets")
    data = parser.parse_args().data
    rows, timings = [], []
    for name, place in CHECKPOINTS.items():
        model = timm.create_model(name, pretrained=True)
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_data(place.format(data))
            some = replace(
                loaded, test=loaded.train.subset(np.linspace(0, len(loaded.train) - 1, INT8_IMAGES).astype(int))
            )
            images = {"images": evaluation_batches(loaded), "int8_images": evaluation_batches(some)}
            reports = export.to_folder(model, folder, PRECISIONS, **images)
            only = {"precision": "int8", "int8_images": evaluation_batches(some)}
            timed = export.to_onnx(model, Path(folder, "x.onnx"), measure=True, **only).timing
        rows += [row(name, report) for report in reports.values()]
        timings += [f"| `{name}` | {timing_cells(timed)} |"]
    write_between(DOCUMENT, "report", section(rows, timings))


def row(name: str, report: export.ExportReport) -> str:
    """Return a checkpoint's line of the table in one precision."""
    cells = [
        f"`{name}`",
        report.precision,
        f"{report.file_size / 1e6:.2f} MB",
        f"{report.max_difference:.1e}",
        f"{report.mean_difference:.1e}",
        f"{100 * report.agreement:.2f} % of {report.images:,}",
        f"{report.accuracy:.2f} %",
        f"{report.accuracy_loss:+.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def timing_cells(timing: export.Timing) -> str:
    """Return the times of the forms as ratios to fp32."""
    base = timing.milliseconds["fp32"]
    ratios = (timing.milliseconds[name] / base for name in ("int8", "int8 apart", "chosen"))
    return " | ".join([f"{base:.1f} ms", *(f"{ratio:.2f}" for ratio in ratios)])


def section(rows: list[str], timings: list[str]) -> Iterator[str]:
    """Yield the lines between the marks."""
    heads = ("checkpoint", "precision", "file", "largest difference of a logit", "mean", "same class as torch")
    yield f"| {' | '.join(heads)} | accuracy | points lost |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from rows
    yield ""
    yield "All test images, as in [models.md](models.md); int8 with ranges of 512 training images. Differences at batch"
    yield "sizes 1, 3 and 32. What `--measure` found for eight images, as ratios to fp32:"
    yield ""
    yield "| checkpoint | fp32 | int8, grouped | int8, branch by branch | int8 as chosen |"
    yield "|---|---|---|---|---|"
    yield from timings
    yield ""
    yield (
        f"Written by `scripts/export_report.py` on {os.cpu_count()} cores of {platform.machine()}, one thread; python "
        f"{platform.python_version()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}."
    )


if __name__ == "__main__":
    main()
