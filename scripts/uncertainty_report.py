"""Do the promises of `ccnn calibrate-confidence` hold? Writes docs/uncertainty_figures.md.

CCNN_TEST_DATA=../shared/data python scripts/uncertainty_report.py

The shipped checkpoints have seen no picture of their test parts. These are halved at random: numbers are fitted on one
half and measured on the other, as often as there are seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from bench_machine import machine
from numpy.typing import NDArray
from real_data import real_data
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from ccnn_zoo import runtime
from ccnn_zoo._files import replacing
from ccnn_zoo.export import to_onnx
from ccnn_zoo.train import evaluation_batches, load_data
from ccnn_zoo.uncertainty import COVERAGES, RISKS, SETS, doubt, fit, prediction_sets, probabilities

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "uncertainty_figures.md"
NETWORKS = {"ccnn_resnet18_cifar.cifar10": "cifar10:", "ccnn_resnet18_cifar.mnist": "mnist:"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of random halves")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    lines = [
        "# What the numbers of confidence promise, and what they keep",
        "",
        f"Written by `scripts/uncertainty_report.py` on {machine()}. Numbers are fitted on one random half of the "
        "test part, which no network was trained on, and measured on the other: mean and standard deviation of "
        f"{args.seeds} halvings. ONNX files in fp32, onnxruntime on the CPU. [uncertainty.md](uncertainty.md) says "
        "what they mean.",
        "",
    ]
    for name, kind in NETWORKS.items():
        lines += section(name, f"{kind}{real_data()}", args.seeds)
    with replacing(args.out) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def section(name: str, data: str, seeds: int) -> list[str]:
    logits, branch_logits, targets, strange, strange_branches = outputs(name, data)
    rows: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(targets))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        for row, value in measured(logits, branch_logits, targets, one, other, strange, strange_branches).items():
            rows.setdefault(row, []).append(value)
    table = [f"| {row} | {told(values)} |" for row, values in rows.items()]
    return [f"## {name}, {len(targets)} test pictures", "", "| | |", "|---|---|", *table, ""]


def told(values: list[float]) -> str:
    """Return mean and standard deviation of the halvings in which there was something to measure."""
    there = [value for value in values if not np.isnan(value)]
    return f"{np.mean(there):.3f} ± {np.std(there):.3f}" if there else "none decided"


def measured(
    logits: NDArray,
    branch_logits: NDArray,
    targets: NDArray,
    one: NDArray,
    other: NDArray,
    strange: NDArray,
    strange_branches: NDArray,
) -> dict[str, float]:
    numbers = fit(logits[one], targets[one], branch_logits[:, one])
    truth = targets[other]
    before, after = probabilities(logits[other]), probabilities(logits[other], numbers.temperature)
    wrong = after.argmax(1) != truth
    found = {
        "error, %": 100 * wrong.mean(),
        "temperature": numbers.temperature,
        "NLL, as trained": log_loss(truth, before, labels=range(before.shape[1])),
        "NLL, with the temperature": log_loss(truth, after, labels=range(after.shape[1])),
        "ECE (15 bins), %, as trained": calibration_error(before, truth),
        "ECE (15 bins), %, with the temperature": calibration_error(after, truth),
    }
    for kind in SETS:
        for coverage in COVERAGES:
            members = prediction_sets(after, numbers.threshold_of_set(coverage, kind), kind)
            found[f"{kind}, coverage asked {100 * coverage:g} %: kept, %"] = (
                100 * members[np.arange(len(truth)), truth].mean()
            )
            found[f"{kind}, coverage asked {100 * coverage:g} %: classes in a set"] = members.sum(1).mean()
    for risk in RISKS:
        decided = after.max(1) >= numbers.threshold_of_decision(risk)
        found[f"risk asked {100 * risk:g} %: decided, %"] = 100 * decided.mean()
        found[f"risk asked {100 * risk:g} %: wrong of them, %"] = (
            100 * wrong[decided].mean() if decided.any() else np.nan
        )
    inside, outside = doubt(logits[other], branch_logits[:, other], numbers), doubt(strange, strange_branches, numbers)
    is_strange = np.repeat([0, 1], [len(other), len(strange)])
    for name, one, two in (
        ("percentile", inside.percentile, outside.percentile),
        ("energy", inside.energy, outside.energy),
        ("1 - highest probability", 1 - inside.probabilities.max(1), 1 - outside.probabilities.max(1)),
        ("entropy", inside.entropy, outside.entropy),
        ("mutual information of the branches", inside.mutual_information, outside.mutual_information),
    ):
        found[f"AUROC of pictures from elsewhere, %: {name}"] = 100 * roc_auc_score(
            is_strange, np.concatenate([one, two])
        )
        found[f"AUROC of own errors, %: {name}"] = 100 * roc_auc_score(wrong, one)
    return found


def calibration_error(probability: NDArray, targets: NDArray) -> float:
    given = torch.from_numpy(probability), torch.from_numpy(targets)
    return 100 * float(multiclass_calibration_error(*given, num_classes=probability.shape[1], n_bins=15))


def outputs(name: str, data: str) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Return logits, those of the branches and classes of the test part, and both logits of pictures from elsewhere."""
    model = timm.create_model(name, pretrained=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(model, path, branch_outputs=True)
        classifier = runtime.load(path, device="cpu")
        found, targets = [], []
        for images, classes in evaluation_batches(load_data(data)):
            found.append(classifier.predict_branches(images.numpy()))
            targets.append(classes.numpy())
        elsewhere = classifier.logits_of(strangers(data))
    return *runtime.Outputs.joined(found), np.concatenate(targets), *elsewhere


def strangers(data: str) -> list[NDArray[np.uint8]]:
    """Pictures of the other data set, 2,000 of them."""
    kind, _, folder = data.partition(":")
    other = load_data({"cifar10": f"mnist:{folder}", "mnist": f"cifar10:{folder}"}[kind])
    return list(other.test.pixels[:2000].numpy())


if __name__ == "__main__":
    main()
