"""What do some of the branches, and cascades, cost and bring? Writes docs/cascade_figures.md and its picture.

CCNN_TEST_DATA=../shared/data python scripts/cascade_curve.py

The shipped checkpoints have seen no picture of their test parts. Of 4,000 of these, drawn by the seed, one half is what
`ccnn export --cascade` is given as held out; all figures are of the other half, by the files that it wrote, in the
runtime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from bench_machine import machine
from documents import replacing, write
from numpy.typing import NDArray
from real_data import real_data
from torch import Tensor

from ccnn_zoo import runtime
from ccnn_zoo.export import cascade_to_onnx
from ccnn_zoo.train import evaluation_batches, load_data
from ccnn_zoo.uncertainty import CascadePoint, cascade_curve, probabilities

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "cascade_figures.md"
NETWORKS = {
    "ccnn_resnet18_cifar.cifar10": "cifar10:",
    "ccnn_resnet18_cifar.mirror_cifar10": "cifar10:",
    "ccnn_resnet18_cifar.mnist": "mnist:",
}
SEED = 0
PICTURES = 4000
FIRST = (1, 2)
COSTS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    lines = [
        "# Fewer branches, and cascades: cost and error",
        "",
        f"Written by `scripts/cascade_curve.py` on {machine()}. A cascade runs some branches on every picture, and the "
        "others where the first ones' highest probability is below a threshold ([export.md](export.md)). Cost is the "
        "expected arithmetic of a picture, as a share of the whole network's. Threshold and first branches were chosen "
        f"on one half of {PICTURES:,} pictures of the test part (seed {SEED}; of all, where there are fewer), which no "
        "network was trained on; all figures are of the other half, by the exported files in the runtime.",
        "",
    ]
    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(10, 4), layout="constrained")
    for axis, (name, kind) in zip(axes, NETWORKS.items(), strict=True):
        lines += section(name, f"{kind}{real_data()}", axis)
    picture = args.out.with_suffix(".png")
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=100)
    lines += [f"![Error over expected cost]({picture.name})", ""]
    write(args.out, lines)


def section(name: str, data: str, axis: plt.Axes) -> list[str]:
    """Return the text on one network, and draw its curves."""
    model = timm.create_model(name, pretrained=True).eval()
    images, classes = (torch.cat(parts) for parts in zip(*evaluation_batches(load_data(data)), strict=True))
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(images)))[:PICTURES]
    held, other = order[: len(order) // 2], order[len(order) // 2 :]
    branches = model.conversion.branches
    pictures, targets = images[other].numpy(), classes[other].numpy()
    lines = [f"## {name}, K={branches}, {len(targets)} pictures", ""]
    rows = []
    for first in (n for n in FIRST if n < branches):
        point, curve, verdict = measured(model, first, (images[held], classes[held]), pictures, targets)
        said = [(100 * p.cost, 100 * p.wrong / len(targets)) for p in curve]
        axis.plot(*zip(*said, strict=True), label=f"first {first} of {branches}")
        axis.plot(100 * point.cost, 100 * point.wrong / len(targets), "o", color=axis.lines[-1].get_color())
        # Of pictures whose probability is 1 in double precision none is ever passed on.
        at = [next((p for p in curve if p.cost >= cost - 1e-9), curve[-1]).wrong for cost in COSTS]
        share = first / branches
        cells = ["" if cost < share else f"{100 * w / len(targets):.2f}" for cost, w in zip(COSTS, at, strict=True)]
        rows.append(
            f"| {first} | {' | '.join(cells)} | {100 * point.cost:.0f} | {100 * point.wrong / len(targets):.2f} |"
        )
        lines += [f"- first {first}: {verdict}"]
    axis.set(title=name, xlabel="expected cost, % of the whole network", ylabel="wrong, %")
    axis.legend()
    head = " | ".join(f"{100 * cost:.0f} %" for cost in COSTS)
    table = [
        f"| first branches | error, %, at cost {head} | cost chosen, % | its error, % |",
        f"|{'---|' * (len(COSTS) + 3)}",
        *rows,
    ]
    lead = "What the exporter said, of every second picture of its half:"
    return [*lines[:2], *table, "", lead, "", *lines[2:], ""]


def measured(
    model: torch.nn.Module, first: int, held: tuple[Tensor, Tensor], pictures: NDArray, targets: NDArray
) -> tuple[CascadePoint, list[CascadePoint], str]:
    """Export a cascade; return what its own threshold gives, what all thresholds give, and the exporter's verdict."""
    share = first / model.conversion.branches
    with tempfile.TemporaryDirectory() as folder:
        report = cascade_to_onnx(model, Path(folder) / "net.onnx", held_out=[held], first=first)
        some, whole, cascade = (
            logits(runtime.load(report.path, device="cpu", **asked), pictures)
            for asked in ({"branches": first}, {}, {"cascade": True})
        )
    doubted = probabilities(some).max(1) < report.fitted.point.threshold
    point = CascadePoint.of(report.fitted.point.threshold, doubted, cascade.argmax(1) != targets, share)
    return point, cascade_curve(some, whole, targets, share), report.verdict


def logits(classifier: runtime.ImageClassifier, pictures: NDArray) -> NDArray:
    return np.concatenate([classifier.predict(pictures[start : start + 256]) for start in range(0, len(pictures), 256)])


if __name__ == "__main__":
    main()
