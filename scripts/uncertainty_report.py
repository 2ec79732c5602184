"""Do the promises of `ccnn calibrate-confidence` hold, and what does plain + temperature keep? Writes the documents.

python scripts/uncertainty_report.py                      # digits alone, which come with scikit-learn
python scripts/uncertainty_report.py --data ../shared/data  # CIFAR-10 and MNIST too, laid out as CONTRIBUTING.md says

Digits: both networks are trained by the recipe `digits` with a fifth held out, for five epochs and once for each seed;
numbers are fitted on that fifth and measured on the test part. CIFAR-10 and MNIST: the shipped checkpoints have
seen no picture of their test parts. These are halved at random, once for each seed: numbers are fitted on one half and
measured on the other. Trainings are kept in --runs, and gone on with where they stopped.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
import timm
import torch
from bench_machine import machine
from documents import write, write_between
from numpy.typing import NDArray
from real_data import real_data
from sklearn.metrics import roc_auc_score
from torch import nn

from ccnn_zoo import runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.export import chosen_branches, to_onnx
from ccnn_zoo.train import CHECKPOINT, Data, Recipe, evaluation_batches, load_data, train
from ccnn_zoo.uncertainty import Confidence, doubt, fit, measure, prediction_sets, probabilities

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES = DOCS / "uncertainty.md", DOCS / "uncertainty_figures.md"
BASELINE = "plain + temperature"
STRANGERS = {"cifar10": "mnist", "mnist": "cifar10"}
SHORT = (
    "error, %",
    "ECE, %, as trained",
    "ECE, %, with the temperature",
    "asked 90 %: sets hold, %",
    "asked 95 %: sets hold, %",
    "asked 99 %: sets hold, %",
    "asked 95 %: classes in a set",
    "asked 95 %, no held-out pictures: probabilities summed hold, %",
    "risk asked 5 %: decided, %",
    "risk asked 5 %: wrong of them, %",
    "risk asked 5 %, no bound: wrong of those above 95 %, %",
)

Rows = dict[str, list[float]]


class Outputs(NamedTuple):
    """Logits, those of the branches or None, and classes of N pictures."""

    logits: NDArray
    branches: NDArray | None
    targets: NDArray

    def part(self, rows: NDArray) -> Outputs:
        return Outputs(self.logits[rows], None if self.branches is None else self.branches[:, rows], self.targets[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=real_data(), help="folder of real pictures, by CCNN_TEST_DATA")
    parser.add_argument("--seeds", type=int, default=5, help="number of random halves")
    parser.add_argument("--trainings", type=int, default=3, help="number of trainings on digits, of each network")
    parser.add_argument("--runs", type=Path, default=Path("runs/uncertainty"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    found = {"digits": digits(args.runs, args.trainings)}
    if args.data.is_dir():
        found["CIFAR-10"] = cifar10(args.data, args.seeds)
        found["MNIST"] = {"K=4": halved("mnist", args.data, args.seeds)}
    report(found, args)


def digits(runs: Path, trainings: int) -> dict[str, Rows]:
    rows: dict[str, Rows] = {BASELINE: {}, "K=4": {}}
    for seed in range(trainings):
        for name, branches in ((BASELINE, 1), ("K=4", 4)):
            # Five epochs instead of twenty, after which there would be nothing left to doubt.
            changes = {"epochs": 5, "validation": 0.2, "branches": branches, "seed": seed}
            recipe = Recipe.load("digits").to_dict() | changes
            model = trained(Recipe.from_mapping(recipe, "digits"), runs / f"digits-{branches}-{seed}")
            kept, held = load_data("digits").hold_out(0.2, seed)
            run, test = (outputs(model, data) for data in (replace(kept, test=held), kept))
            add(rows[name], measured(fit(run.logits, run.targets, run.branches), test, None))
    return rows


def cifar10(folder: Path, seeds: int) -> dict[str, Rows]:
    """Measure the shipped network that is shown the mirror image, the same without it, and the shipped ensemble."""
    seen, joined = (
        timm.create_model(f"ccnn_resnet18_cifar.{tag}", pretrained=True).eval() for tag in ("mirror_cifar10", "cifar10")
    )
    networks = {
        BASELINE: chosen_branches(seen, [0]),
        "image and mirror image": seen,
        f"ensemble of {joined.branches}": joined,
    }
    return {name: halved("cifar10", folder, seeds, model) for name, model in networks.items()}


def place(kind: str, folder: Path) -> str:
    archive = folder / "cifar10-jpeg.tar.xz"
    return f"{kind}:{archive if kind == 'cifar10' and archive.is_file() else folder}"


def trained(recipe: Recipe, folder: Path) -> nn.Module:
    """Return the network of a whole training, which is run, or gone on with, where there is none."""
    train(recipe, folder, resume=True)
    return load_checkpoint(folder / CHECKPOINT)[0]


def halved(kind: str, folder: Path, seeds: int, model: nn.Module | None = None) -> Rows:
    """Measure on random halves of the test part, by numbers fitted on the other halves."""
    model = model or timm.create_model(f"ccnn_resnet18_cifar.{kind}", pretrained=True).eval()
    data = load_data(place(kind, folder))
    strangers = list(load_data(place(STRANGERS[kind], folder)).test.pixels[:2000].numpy())
    found, strange = outputs(model, data, strangers)
    rows: Rows = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(found.targets))
        one, other = found.part(order[: len(order) // 2]), found.part(order[len(order) // 2 :])
        add(rows, measured(fit(one.logits, one.targets, one.branches), other, strange))
    return rows


def outputs(model: nn.Module, data: Data, strangers: list[NDArray] | None = None) -> Outputs | tuple[Outputs, Outputs]:
    """Return what the exported network gives for the test part of ``data``, and for pictures of something else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(model, path, branch_outputs=getattr(model, "branches", 1) > 1)
        classifier = runtime.load(path, device="cpu")
        found, targets = [], []
        for images, classes in evaluation_batches(data):
            found.append(classifier.predict_branches(images.numpy()))
            targets.append(classes.numpy())
        usual = Outputs(*runtime.Outputs.joined(found), np.concatenate(targets))
        if strangers is None:
            return usual
        return usual, Outputs(*classifier.logits_of(strangers), np.empty(0))


def measured(numbers: Confidence, test: Outputs, strange: Outputs | None) -> dict[str, float]:
    """Return the figures of one network; NaN where there is nothing to measure."""
    found = measure(test.logits, test.targets, numbers)
    probability = probabilities(test.logits, numbers.temperature)
    rows = np.arange(len(test.targets))
    figures = {
        "error, %": found.error_percent,
        "temperature": numbers.temperature,
        "NLL, as trained": found.nll,
        "NLL, with the temperature": found.nll_fitted,
        "ECE, %, as trained": found.ece_percent,
        "ECE, %, with the temperature": found.ece_percent_fitted,
        "AURC, %": found.aurc_percent,
    }
    for text in found.covered_percent:
        coverage, asked = float(text), f"asked {100 * float(text):g} %"
        figures[f"{asked}: sets hold, %"] = found.covered_percent[text]
        for side, bound in zip(("least", "most"), by_chance(numbers.pictures, len(rows), coverage), strict=True):
            figures[f"{asked}: {side} in 99 of 100 draws, %"] = bound
        figures[f"{asked}: classes in a set"] = found.set_size[text]
        aps = prediction_sets(probability, numbers.threshold_of_set(coverage, "aps"), "aps")
        figures[f"{asked}: sets of the kind aps hold, %"] = 100 * aps[rows, test.targets].mean()
        figures[f"{asked}: classes in one of aps"] = aps.sum(1).mean()
        summed = prediction_sets(probability, coverage, "aps")  # classes until their probabilities make up the coverage
        figures[f"{asked}, no held-out pictures: probabilities summed hold, %"] = (
            100 * summed[rows, test.targets].mean()
        )
        figures[f"{asked}, no held-out pictures: classes in one of these"] = summed.sum(1).mean()
    for text, decided in found.decided_percent.items():
        risk, wrong = float(text), found.wrong_percent[text]
        figures[f"risk asked {100 * risk:g} %: decided, %"] = decided
        figures[f"risk asked {100 * risk:g} %: wrong of them, %"] = math.nan if wrong is None else wrong
        above = probability.max(1) >= 1 - risk
        name = f"risk asked {100 * risk:g} %, no bound: wrong of those above {100 * (1 - risk):g} %, %"
        misses = probability.argmax(1)[above] != test.targets[above]
        figures[name] = 100 * misses.mean() if above.any() else math.nan
    return figures | aurocs(numbers, test, strange)


def by_chance(fitted: int, tested: int, coverage: float) -> tuple[float, float]:
    """Return between which shares, in percent, a kept promise lies 99 times of 100 (Vovk 2012: beta-binomial).

    The upper one holds for scores without ties; sets of one class at least may hold more.
    """
    rank = math.ceil((fitted + 1) * coverage - 1e-9)
    return tuple(
        100 * bound / tested for bound in scipy.stats.betabinom.interval(0.99, tested, rank, fitted + 1 - rank)
    )


def aurocs(numbers: Confidence, test: Outputs, strange: Outputs | None) -> dict[str, float]:
    inside = doubt(test.logits, test.branches, numbers)
    wrong = inside.probabilities.argmax(1) != test.targets
    outside = None if strange is None else doubt(strange.logits, strange.branches, numbers)
    figures = {}
    for name, score in (
        ("percentile", lambda d: d.percentile),
        ("energy", lambda d: d.energy),
        ("1 - highest probability", lambda d: 1 - d.probabilities.max(1)),
        ("entropy", lambda d: d.entropy),
        ("mutual information of the branches", lambda d: d.mutual_information),
    ):
        usual = score(inside)
        if usual is None:
            continue
        figures[f"AUROC of own errors, %: {name}"] = 100 * roc_auc_score(wrong, usual) if wrong.any() else math.nan
        if outside is not None:
            is_strange = np.repeat([0, 1], [len(usual), len(strange.logits)])
            area = roc_auc_score(is_strange, np.concatenate([usual, score(outside)]))
            figures[f"AUROC of pictures from elsewhere, %: {name}"] = 100 * area
    return figures


def add(rows: Rows, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        rows.setdefault(name, []).append(value)


def told(values: list[float] | None) -> str:
    """Return mean and standard deviation of where there was something to measure."""
    there = [value for value in values or () if not math.isnan(value)]
    return f"{np.mean(there):.2f} ± {np.std(there):.2f}" if there else "none" if values else ""


def table(networks: dict[str, Rows], names: Iterator[str]) -> list[str]:
    lines = [["", *networks], ["---"] * (len(networks) + 1)]
    lines += [[name, *(told(rows.get(name)) for rows in networks.values())] for name in names]
    return [f"| {' | '.join(line)} |" for line in lines]


def report(found: dict[str, dict[str, Rows]], args: argparse.Namespace) -> None:
    how = (
        f"Written by `scripts/uncertainty_report.py` on {machine()}. Digits: mean and standard deviation of "
        f"{args.trainings} trainings of each network (5 epochs), numbers fitted on the held-out fifth, measured on "
        f"the test part. CIFAR-10 and MNIST: of {args.seeds} random halvings of the test part, one half to fit on, the "
        "shipped checkpoints. On CIFAR-10 these are a plain network, the same shown the mirror image, and an ensemble "
        "of plain networks whose epochs together are as many. ONNX files in fp32, onnxruntime on the CPU."
    )
    lines = ["# What the numbers of confidence promise, and what they keep", "", how]
    lines += ["[uncertainty.md](uncertainty.md) says what they mean.", ""]
    short = []
    for data, networks in found.items():
        names = dict.fromkeys(name for rows in networks.values() for name in rows)
        lines += [f"## {data}", "", *table(networks, iter(names)), ""]
        if BASELINE in networks:
            short += [f"**{data}**", "", *table(networks, iter(SHORT)), ""]
    write(args.out, lines)
    write_between(args.page, "figures", ["", *short, how])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
