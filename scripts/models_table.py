"""Write docs/models.md: the networks of the zoo, the shipped checkpoints, and what the package costs.

    python scripts/models_table.py             # all of it
    python scripts/models_table.py --counts    # measures nothing, for a machine that is busy: times stay as they are

Times are medians of alternating runs; ratios compare what stands beside each other in one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from documents import write
from experiments.table2 import CLASSES, ROWS, Row, counts, stage_kernels

from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.models import table

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "models.md"
COST = "## Cost"
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="keep the times that are there")
    keep = parser.parse_args().counts
    lines = ["# The zoo", "", "Written by `scripts/models_table.py`.", ""]
    lines += [*networks(), "", *kernels(), "", *checkpoints(), ""]
    lines += [COST + DOCUMENT.read_text(encoding="utf-8").partition(COST)[2].rstrip()] if keep else [COST, "", *costs()]
    print(write(DOCUMENT, lines))


def machine() -> str:
    versions = f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    return f"{os.cpu_count()} cores of {platform.machine()}, {versions}"


def networks() -> Iterator[str]:
    """Yield the table of names and counts."""
    yield "| network | K | trained parameters | the same, dense | deployed parameters | multiply-adds | input |"
    yield "|---|---|---|---|---|---|---|"
    for row in table("ccnn_*"):
        dense = timm.create_model(row.name, mixing="dense", device="meta")
        yield (
            f"| `{row.name}` | {row.branches} | {row.trained_parameters:,} | "
            f"{sum(p.numel() for p in dense.parameters()):,} | {row.folded_parameters:,} | {row.macs:,} | "
            f"{'x'.join(map(str, row.input_size))} |"
        )
    yield ""
    yield (
        "K is the default and any of them takes another: `branches=1` is the plain network. Trained parameters are w, "
        "R, batch normalisation and classifier; deployed ones have the effective kernels in place of w and R, which is "
        'what the paper\'s Table 2 counts. With `mixing="dense"` every branch reads all others: w is K times as '
        "large, and it multiplies about K times as often. ResNet-1202 has 19.4 million parameters as a plain network, "
        "as He et al. (2016) print; the 10.2 million in the paper's Table 2 is what Zagoruyko and Komodakis (2016) "
        "list for pre-activation ResNet-1001."
    )


def kernels() -> Iterator[str]:
    """Yield what the paper's Table 2 prints of its networks beside what ours have."""
    printed = [row for row in ROWS if row.kernels]
    yield "## Against the paper's Table 2"
    yield ""
    yield f"Millions of deployed parameters, {CLASSES} classes; kernels of the stem and of the stages, of one branch."
    yield ""
    yield "| method | network | K | kernels, paper | ours | parameters, paper | ours | the same number |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in printed:
        ours = counts(row, "grouped")[1] / 1e6
        yield (
            f"| {row.method} | `{row.model}` | {row.branches} | {dashed(row.kernels)} | {dashed(stage_kernels(row))} | "
            f"{row.parameters} | {ours:.2f} | {'yes' if round(ours, 1) == row.parameters else 'no'} |"
        )
    yield ""
    for row in printed:
        if row.kernels != stage_kernels(row):
            yield other_stem(row)


def dashed(numbers: tuple[int, ...]) -> str:
    """Return the numbers as the paper prints kernels."""
    return "-".join(map(str, numbers))


def other_stem(row: Row) -> str:
    """Return what a network that has another stem than the paper's table says would have with that one."""
    wide = counts(row, "grouped", wide_stem=True)[1] / 1e6
    return (
        f"- {row.method} with the stem of {row.kernels[0]} that the table names (`wide_stem=True`) has {wide:.2f} "
        f"million; the table's {row.parameters} is the count of Zagoruyko and Komodakis's network, whose stem has 16."
    )


def checkpoints() -> Iterator[str]:
    """Yield the table of trained weights that come with the package."""
    yield "## Shipped checkpoints"
    yield ""
    yield "| name | data | epochs | seed | test error | size |"
    yield "|---|---|---|---|---|---|"
    for row in table("ccnn_*"):
        for tag in row.checkpoints:
            path = Path(timm.get_pretrained_cfg(f"{row.name}.{tag}").file)
            _, record = load_checkpoint(path)
            yield (
                f"| `{row.name}.{tag}` | {record.data} | {record.epochs} | {record.seed} | "
                f"{record.metrics['test_error_percent']:.2f} % | {path.stat().st_size / 1e6:.2f} MB |"
            )
    yield ""
    yield 'They load without a network: `timm.create_model("ccnn_resnet18_cifar.mnist", pretrained=True)`.'
    yield ""
    yield "`make docs` exports them into the site, with links that open them in [Netron](https://netron.app):"
    for row in table("ccnn_*"):
        for tag in row.checkpoints:
            yield ""
            yield f'<p data-onnx="checkpoints/{row.name}.{tag}.onnx">{row.name}.{tag}.onnx</p>'


def costs() -> Iterator[str]:
    """Yield what importing and building cost."""
    bare, package = alternating(lambda: imported("pass"), lambda: imported("import ccnn_zoo"))
    alone, joined = alternating(lambda: imported("import timm"), lambda: imported("import ccnn_zoo, timm"))
    theirs, ours = alternating(
        lambda: seconds(lambda: timm.create_model("resnet18")),
        lambda: seconds(lambda: timm.create_model("ccnn_resnet18", branches=2)),
    )
    model = timm.create_model("ccnn_resnet18", branches=2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    plain = sum(p.numel() * p.element_size() for p in timm.create_model("resnet18").parameters())
    yield f"Measured on {machine()}."
    yield ""
    yield "| what | measured |"
    yield "|---|---|"
    yield f"| `import ccnn_zoo`, over a bare interpreter | {package - bare:.3f} s |"
    yield f"| `import timm` with ccnn_zoo, over without | {joined - alone:.2f} s of {alone:.2f} s |"
    yield f"| building `ccnn_resnet18` (K=2), over timm's `resnet18` | {ours / theirs:.2f} times |"
    yield f"| memory of its parameters (w, R, normalisation), over timm's | {weights / plain:.4f} times |"


def alternating(*runs: Callable[[], float]) -> list[float]:
    """Return the median seconds of each run, taken in turns."""
    times = [[run() for run in runs] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def imported(statement: str) -> float:
    """Return the seconds that a new interpreter takes for a statement."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True))


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
