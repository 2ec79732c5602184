"""What does a network gain that sees the mirror image too? Writes docs/mirror_figures.md.

    ccnn train --recipe cifar10_cpu --data cifar10:DATA --branches 2 --set "model_kwargs={mirrored: [1]}" -o runs/mirror
    ccnn train --recipe cifar10_cpu --data cifar10:DATA --branches 2 --set objective=0.5 --set merge=probability \\
        --set calibration_lr=0 --set "model_kwargs={mirrored: [1], diversity: 0.0}" -o runs/mirror_alike
    CCNN_TEST_DATA=DATA python scripts/mirror_figures.py --trained runs/mirror runs/mirror_alike

Of the shipped network of CIFAR-10 at 32x32, of the plain networks of which it is made, and of those whose two branches
were trained with mirror images, on all test images. Nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from bench_machine import machine
from documents import write
from experiments._document import table
from experiments._scores import mean_prediction, scores
from numpy.typing import NDArray
from real_data import real_data
from torch import Tensor, nn

import ccnn_zoo
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.convert import chosen_branches
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.train import CHECKPOINT, evaluation_batches, load_data

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "mirror_figures.md"
NAME = "ccnn_resnet18_cifar.cifar10"

Array: TypeAlias = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, nargs="+", required=True, help="runs of networks with two views")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    shipped = timm.create_model(NAME, pretrained=True).eval()
    members = [chosen_branches(shipped, [k]) for k in range(shipped.conversion.branches)]
    data = load_data(f"cifar10:{real_data()}")
    images, targets = (torch.cat(parts) for parts in zip(*evaluation_batches(data), strict=True))
    sources = {f"network {k} of it": [member] for k, member in enumerate(members)} | {"the shipped network": members}
    rows = [row for name, networks in sources.items() for row in _rows(name, networks, images, targets)]
    rows += [_trained(run / CHECKPOINT, members[0], images, targets) for run in args.trained]
    lines = [
        "# Seen twice: the picture and its mirror image",
        "",
        f"Written by `scripts/mirror_figures.py` on {machine()}. {NAME} is {len(members)} plain networks joined, which "
        "learned from mirrored pictures too. Each was asked about the picture, and about the picture and its mirror "
        "image, in which case it is two branches (`deep_ensemble(..., mirrored=True)`). "
        "The last networks have two branches that were trained so, together, with one weight w, by recipe and seed of "
        "network 0, with which they are compared; their training computes twice as much. Where R is alike, the "
        "branches share all of w and are not calibrated; the loss is half the joint one, half the branches' own. "
        f"Of the {len(targets):,} test images of CIFAR-10, at 32x32; nothing was chosen by them. "
        "The difference is given with its standard error over the images. Several seeds, "
        "on smaller networks, are in [the table of what branches buy]"
        "(results/pays_medium_cifar10_16_narrow.md).",
        "",
        *table(["", "multiply-adds", "error, %", "difference, points", "NLL"], rows),
    ]
    write(args.out, lines)


def _rows(name: str, networks: list[nn.Module], images: Tensor, targets: Tensor) -> list[list[str]]:
    """Return the lines of some networks together, without and with mirror images."""
    count = len(networks)
    twice = ccnn_zoo.deep_ensemble(networks, mirrored=True)
    branches, classes = [*_said(twice.forward_branches, images)], targets.numpy()
    said = [mean_prediction(branches[:count]), mean_prediction(branches)]
    return [
        _row(name, count, said[0], classes),
        _row(f"{name}, image and mirror image", 2 * count, said[1], classes, less=said[0]),
    ]


def _trained(checkpoint: Path, control: nn.Module, images: Tensor, targets: Tensor) -> list[str]:
    """Return the line of the network whose two branches were trained to see the image and its mirror image."""
    network, _ = load_checkpoint(checkpoint)
    said, alone = _said(network, images), _said(control, images)
    convolutions = [layer for layer in network.modules() if isinstance(layer, CalibratedConv2d)]
    alike = all(torch.equal(layer.calibration[0], layer.calibration[1]) for layer in convolutions)
    how = ", R alike, half by their own losses" if alike else ""
    name = f"two branches trained together, one sees the mirror image{how}; less network 0"
    return _row(name, network.conversion.branches, said, targets.numpy(), less=alone)


def _row(name: str, cost: int, said: Array, classes: Array, less: Array | None = None) -> list[str]:
    """Return a line: multiply-adds over those of a plain network, figures, and the error less that of other answers."""
    figures, difference = scores(said, classes), ""
    if less is not None:
        gain = (said.argmax(1) != classes).astype(float) - (less.argmax(1) != classes)
        spread = gain.std(ddof=1) / len(gain) ** 0.5
        difference = f"{100 * gain.mean():+.2f} ± {100 * spread:.2f}"
    return [name, f"{cost} x", f"{figures['error_percent']:.2f}", difference, f"{figures['nll']:.3f}"]


@torch.inference_mode()
def _said(ask: Callable[[Tensor], Tensor], images: Tensor) -> Array:
    """Return the log-probabilities of a network, (N, classes), or of every branch, (K, N, classes)."""
    return torch.cat([ask(some).log_softmax(-1) for some in images.split(250)], dim=-2).numpy()


if __name__ == "__main__":
    main()
