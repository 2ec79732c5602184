"""What does a network gain that sees the mirror image too? Writes docs/mirror_figures.md.

    ccnn train --recipe cifar10_cpu --data cifar10:DATA --branches 2 --set "model_kwargs={mirrored: [1]}" -o runs/mirror
    ccnn train --recipe cifar10_cpu --data cifar10:DATA --branches 2 --set objective=0.5 --set merge=probability \\
        --set calibration_lr=0 --set "model_kwargs={mirrored: [1], diversity: 0.0}" -o runs/mirror_alike
    ccnn train --recipe cifar10_cpu --data cifar10:DATA --set epochs=60 -o runs/longer
    CCNN_TEST_DATA=DATA python scripts/mirror_figures.py --trained runs/mirror runs/mirror_alike runs/longer

Of the shipped ensemble of CIFAR-10 at 32x32, of the plain networks of which it is made, of a plain one that trained for
longer, and of those whose two branches were trained with mirror images. On all test images, by which nothing is chosen,
and on the held-out ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from ccnn_zoo.train import CHECKPOINT, Data, Images, Recipe, load_data
from ccnn_zoo.train.tasks import loader_of, view_of

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "mirror_figures.md"
NAME, RECIPE, WHOLE = "ccnn_resnet18_cifar.cifar10", "cifar10_cpu", "the shipped ensemble"

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What networks say of the held-out and of the test images.

    Args:
        name: of the networks.
        cost: multiply-adds over those of a plain network.
        said: log-probabilities, (N, classes) each.
    """

    name: str
    cost: int
    said: tuple[Array, Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trained", type=Path, nargs="+", required=True, help="runs of one plain branch or of two views"
    )
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    shipped = timm.create_model(NAME, pretrained=True).eval()
    members = [chosen_branches(shipped, [k]) for k in range(shipped.conversion.branches)]
    data = load_data(f"cifar10:{real_data()}")
    recipe = Recipe.load(RECIPE)
    parts = (data.hold_out(recipe.validation, recipe.seed)[1], data.test)
    images, classes = zip(*(_all_of(part, data, recipe) for part in parts), strict=True)
    compared: list[tuple[Answers, list[Answers]]] = []
    for name, networks in {**{f"network {k} of it": [m] for k, m in enumerate(members)}, WHOLE: members}.items():
        alone, twice = _seen_twice(name, networks, images)
        compared += [(alone, []), (twice, [alone])]
    first, together = compared[0][0], compared[-2][0]
    for run in args.trained:
        network, record = load_checkpoint(run / CHECKPOINT)
        if network.conversion.branches > 1:
            compared.append((Answers(_how(network), network.conversion.branches, _said(network, images)), [first]))
        else:
            alone, twice = _seen_twice(f"plain network of {record.epochs} epochs", [network], images)
            compared += [(alone, [first]), (twice, [first, together])]
    lines = [
        "# Seen twice: the picture and its mirror image",
        "",
        f"Written by `scripts/mirror_figures.py` on {machine()}. {NAME} is {len(members)} plain networks joined, which "
        "learned from mirrored pictures too. Each was asked about the picture, and about the picture and its mirror "
        "image, in which case it is two branches (`deep_ensemble(..., mirrored=True)`). The last networks are trained "
        f"by recipe and seed of network 0, which had {recipe.epochs} epochs. Those of two branches were trained so, "
        "together, with one weight w: that computes twice as much, as a plain network of twice the epochs does. With R "
        "alike, the branches share all of w and are not calibrated; the loss is half the joint one, half the "
        f"branches' own. Errors are of the {len(classes[0]):,} held-out training images and the {len(classes[1]):,} "
        "test images of CIFAR-10, at 32x32; nothing was chosen by the test images, of which differences and NLL are. "
        "A difference is given with its standard error over the images. Several seeds, on smaller networks, are in "
        "[the table of what branches buy](results/pays_medium_cifar10_16_narrow.md).",
        "",
        *table(
            ["", "multiply-adds", "held-out error, %", "error, %", "difference, points", "NLL"],
            [_row(answers, others, classes) for answers, others in compared],
        ),
    ]
    write(args.out, lines)


def _all_of(images: Images, data: Data, recipe: Recipe) -> tuple[Tensor, Array]:
    """Return all images, as networks read them, and their classes."""
    seen, classes = zip(*loader_of(view_of(images, data), recipe), strict=True)
    return torch.cat(seen), torch.cat(classes).numpy()


def _seen_twice(name: str, networks: list[nn.Module], images: Sequence[Tensor]) -> tuple[Answers, Answers]:
    """Return what some networks say together, without and with mirror images."""
    count = len(networks)
    branches = _said(ccnn_zoo.deep_ensemble(networks, mirrored=True).forward_branches, images)
    alone, twice = (tuple(mean_prediction([*said[:shown]]) for said in branches) for shown in (count, 2 * count))
    return Answers(name, count, alone), Answers(f"{name}, image and mirror image", 2 * count, twice)


def _how(network: nn.Module) -> str:
    """Return how two branches were trained that see the image and its mirror image."""
    convolutions = [layer for layer in network.modules() if isinstance(layer, CalibratedConv2d)]
    alike = all(torch.equal(layer.calibration[0], layer.calibration[1]) for layer in convolutions)
    how = ", R alike, half by their own losses" if alike else ""
    return f"two branches trained together, one sees the mirror image{how}"


def _row(answers: Answers, others: list[Answers], classes: Sequence[Array]) -> list[str]:
    """Return a line: cost, errors, the difference to other networks, NLL."""
    held, test = (scores(said, each) for said, each in zip(answers.said, classes, strict=True))
    wrong, *theirs = ((each.said[1].argmax(1) != classes[1]).astype(float) for each in (answers, *others))
    gains = {other.name.removesuffix(" of it"): wrong - its for other, its in zip(others, theirs, strict=True)}
    differences = "; ".join(
        f"{100 * gain.mean():+.2f} ± {100 * gain.std(ddof=1) / len(gain) ** 0.5:.2f} to {name}"
        for name, gain in gains.items()
    )
    errors = [f"{part['error_percent']:.2f}" for part in (held, test)]
    return [answers.name, f"{answers.cost} x", *errors, differences, f"{test['nll']:.3f}"]


@torch.inference_mode()
def _said(ask: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> tuple[Array, ...]:
    """Return the log-probabilities of a network, (N, classes), or of every branch, (K, N, classes), of each part."""
    return tuple(torch.cat([ask(some).log_softmax(-1) for some in part.split(250)], dim=-2).numpy() for part in images)


if __name__ == "__main__":
    main()
