"""What does a network gain that sees the mirror image too? Writes docs/mirror_figures.md.

CCNN_TEST_DATA=../shared/data python scripts/mirror_figures.py

Of the shipped network of CIFAR-10 at 32x32, and of the plain networks of which it is made, on all test images. Nothing
is trained or chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from bench_machine import machine
from documents import write
from experiments._document import table
from experiments._scores import mean_prediction, scores
from real_data import real_data
from torch import Tensor, nn

import ccnn_zoo
from ccnn_zoo.convert import chosen_branches
from ccnn_zoo.train import evaluation_batches, load_data

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "mirror_figures.md"
NAME = "ccnn_resnet18_cifar.cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    shipped = timm.create_model(NAME, pretrained=True).eval()
    members = [chosen_branches(shipped, [k]) for k in range(shipped.conversion.branches)]
    data = load_data(f"cifar10:{real_data()}")
    images, targets = (torch.cat(parts) for parts in zip(*evaluation_batches(data), strict=True))
    sources = {f"network {k} of it": [member] for k, member in enumerate(members)} | {"the shipped network": members}
    rows = [row for name, networks in sources.items() for row in _rows(name, networks, images, targets)]
    lines = [
        "# Seen twice: the picture and its mirror image",
        "",
        f"Written by `scripts/mirror_figures.py` on {machine()}. {NAME} is {len(members)} plain networks joined, which "
        "learned from mirrored pictures too. Each was asked about the picture, and about the picture and its mirror "
        "image, in which case it is two branches (`deep_ensemble(..., mirrored=True)`). Of the "
        f"{len(targets):,} test images of CIFAR-10, at 32x32; nothing was trained or chosen for it. The difference is "
        "given with its standard error over the images. Several seeds, on smaller networks, are in [the table of what "
        "branches buy](results/pays_medium_cifar10_16_narrow.md).",
        "",
        *table(["", "multiply-adds", "error, %", "difference, points", "NLL"], rows),
    ]
    write(args.out, lines)


def _rows(name: str, networks: list[nn.Module], images: Tensor, targets: Tensor) -> list[list[str]]:
    """Return the lines of some networks together, without and with mirror images."""
    count = len(networks)
    twice = ccnn_zoo.deep_ensemble(networks, mirrored=True)
    branches, classes = [*_said(twice, images).numpy()], targets.numpy()
    said = [mean_prediction(branches[:count]), mean_prediction(branches)]
    wrong = [(each.argmax(1) != classes).astype(float) for each in said]
    gain = wrong[1] - wrong[0]
    figures = [scores(each, classes) for each in said]
    spread = 100 * float(gain.std(ddof=1) / len(gain) ** 0.5)
    return [
        [name, f"{count} x", f"{figures[0]['error_percent']:.2f}", "", f"{figures[0]['nll']:.3f}"],
        [
            f"{name}, image and mirror image",
            f"{2 * count} x",
            f"{figures[1]['error_percent']:.2f}",
            f"{100 * float(gain.mean()):+.2f} ± {spread:.2f}",
            f"{figures[1]['nll']:.3f}",
        ],
    ]


@torch.inference_mode()
def _said(network: nn.Module, images: Tensor) -> Tensor:
    """Return the log-probabilities of every branch, (K, N, classes)."""
    return torch.cat([network.forward_branches(some).log_softmax(2) for some in images.split(250)], dim=1)


if __name__ == "__main__":
    main()
