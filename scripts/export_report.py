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
from pathlib import Path

import onnxruntime
import timm
import torch
from real_data import real_data

import ccnn_zoo  # noqa: F401, registers the networks
from ccnn_zoo import export
from ccnn_zoo._files import replacing
from ccnn_zoo.cli._sources import export_images

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "export.md"
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
CHECKPOINTS = {
    "ccnn_resnet18_cifar.mnist": "mnist:{}",
    "ccnn_resnet18_cifar.cifar10": "cifar10:{}/cifar10-jpeg.tar.xz",
}
PRECISIONS = ("fp32", "fp16", "int8")


def main() -> None:
    """Export, and write what the reports say between the two marks of the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=real_data(), help="folder of the data sets")
    data = parser.parse_args().data
    rows, timings = [], []
    for name, place in CHECKPOINTS.items():
        model = timm.create_model(name, pretrained=True)
        with tempfile.TemporaryDirectory() as folder:
            images = export_images(place.format(data), PRECISIONS)
            reports = export.to_folder(model, folder, PRECISIONS, **images)
            training = export_images(place.format(data), PRECISIONS)["int8_images"]
            timed = export.to_onnx(
                model, Path(folder, "x.onnx"), precision="int8", int8_images=training, measure=True
            ).timing
        rows += [row(name, report) for report in reports.values()]
        timings += [f"| `{name}` | {timing_cells(timed)} |"]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    with replacing(DOCUMENT) as temporary:
        temporary.write_text(before + "\n".join([BEGIN, *section(rows, timings), END]) + after, encoding="utf-8")


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
