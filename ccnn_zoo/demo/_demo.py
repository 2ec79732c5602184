"""The steps of the main job, in order, on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ccnn_zoo import hub, runtime
from ccnn_zoo._files import replacing
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import CCNNError, ConfigurationError, IntegrityError
from ccnn_zoo.train import (
    CHECKPOINT,
    Data,
    Recipe,
    TrainingResult,
    evaluation_batches,
    join_runs,
    load_data,
    read_history,
    train,
)

from ._picture import draw
from ._report import DemoReport, DoubtReport, NetworkReport

Say = Callable[[str], None]

COVERAGE, MAX_RISK = 0.95, 0.05
UNLIKE = 95  # percentile of the held-out digits
MEMBERS = 4
SETTINGS = {"validation": 0.75, "epochs": 40}
"""With all digits to learn from there is nothing to gain: a plain network errs on two or three of those to test."""


def run(
    output: str | os.PathLike[str] = "ccnn-demo",
    *,
    device: str = "auto",
    recipe: Recipe | None = None,
    say: Say = print,
    progress: bool = True,
) -> DemoReport:
    """Do the main job, leaving ``demo.png``, ``demo.json``, the trained networks and a repository in ``output``.

    Plain networks are trained apart and joined, and one network with as many branches that share their weights is
    trained; the ensemble is published, downloaded and asked.

    What an earlier run left there is used again if it was trained by the same recipe and is whole.

    Args:
        output: folder, made if missing.
        device: of the classification: ``"auto"``, ``"cuda"`` or ``"cpu"``.
        recipe: of the calibrated network; None is the packaged ``digits`` with three quarters of the training digits
            held out, on which the numbers of confidence are fitted. The plain ones differ in ``branches``.
        say: what is told the user, line by line.
        progress: show progress bars on stderr.

    Raises:
        ConfigurationError: ``recipe`` holds no images out.
        RepositoryError: ``output`` cannot be written.
        DeviceError: ``device="cuda"`` and CUDA cannot run.
        ExportError: the exported network failed its check.
    """
    output = Path(output)
    recipe = recipe or replace(Recipe.load("digits"), branches=MEMBERS, **SETTINGS)
    if not recipe.validation:
        raise ConfigurationError(
            f"validation={recipe.validation}: confidence is fitted on held-out images; hold some out: 0.2"
        )
    runtime.check_device(device)
    data = load_data(recipe.data, recipe.image_size)
    kept, held = data.hold_out(recipe.validation, recipe.seed)
    say(f"{data.name}: {len(kept.train)} to train on, {len(held)} to fit doubt on, {len(data.test)} to test")

    held_out = replace(data, test=held)
    trained = _train_all(recipe, output, say, progress)
    calibrated, _ = trained[-1]
    _check_folding(calibrated, data, say)
    plain = {f"plain-{n}": (result.model, result.record) for n, (result, _) in enumerate(trained[:-1])}
    joined, record = join_runs(plain, data, held_out)
    members, reports = _reports(trained, joined, record, say)
    folder = _published(joined, record, output, data, held_out, say)
    classifier = runtime.load(f"local:{folder}", device=device)
    asked = {"coverage": COVERAGE, "max_risk": MAX_RISK}
    results = classifier.classify((picture for picture, _ in data.test), **asked)
    say(f"classified {len(results)} digits on {classifier.provider}")
    found = [result.predictions[0].index for result in results]
    wrong = sum(index != target for index, target in zip(found, data.test.targets.tolist(), strict=True))
    same = sum(index == other for index, other in zip(found, _classes_by_torch(joined, data), strict=True))
    say(f"ONNX network: {100 * wrong / len(found):.2f} % wrong, {same} of {len(found)} classes as in torch")

    noise = np.random.default_rng(recipe.seed).integers(0, 256, (len(results), *data.input_size[1:]), np.uint8)
    doubt = _doubt(results, data, classifier.classify(map(Image.fromarray, noise), **asked), len(held))
    say(
        f"sets of {100 * COVERAGE:g} %: {doubt.covered} of {len(results)} hold the right class, "
        f"{doubt.mean_set_size:.2f} classes each; at {100 * MAX_RISK:g} % risk it decides {doubt.decided} and is wrong "
        f"on {doubt.wrong}; it tells {100 * doubt.noise_told:.0f} % of pictures of noise from digits"
    )

    picture = output / "demo.png"
    curves = {"plain": trained[0][0].history, f"K={recipe.branches}, one shared weight": calibrated.history}
    level = (f"{len(members)} plain ones, joined", reports["ensemble"].test_error_percent)
    draw(picture, curves, level, data, results, calibrated)
    say(f"picture: {picture}")
    report = DemoReport(
        plain=members,
        **reports,
        data=data.name,
        learned_from=len(kept.train),
        images=len(results),
        seed=recipe.seed,
        epochs=calibrated.record.epochs,
        provider=classifier.provider,
        onnx_error_percent=100 * wrong / len(found),
        same_class_as_torch=same,
        doubt=doubt,
        versions=calibrated.record.versions,
        picture=str(picture),
        repository=str(folder),
    )
    with replacing(output / "demo.json") as temporary:
        temporary.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _train_all(recipe: Recipe, output: Path, say: Say, progress: bool) -> list[tuple[TrainingResult, float]]:
    """Return as many plain networks as there are branches, then the calibrated one, each with its seconds."""
    plain = replace(recipe, branches=1)
    recipes = {f"plain-{n}": replace(plain, member=n) for n in range(recipe.branches)} | {"calibrated": recipe}
    return [_trained(each, output / name, say, progress) for name, each in recipes.items()]


def _reports(
    trained: Sequence[tuple[TrainingResult, float]], joined: nn.Module, record: TrainingRecord, say: Say
) -> tuple[tuple[NetworkReport, ...], dict[str, NetworkReport]]:
    """Return what the plain networks are, and by name the two that have branches."""
    *members, calibrated = (_network_report(result.model, result.record, took) for result, took in trained)
    ensemble = replace(
        _network_report(joined, record, sum(member.seconds for member in members)),
        trained_parameters=sum(member.trained_parameters for member in members),
    )
    errors = ", ".join(f"{member.test_error_percent:.2f} %" for member in members)
    say(f"{len(members)} plain networks alone: test error {errors}")
    reports = {"ensemble": ensemble, "calibrated": calibrated}
    for name, report in reports.items():
        say(
            f"{name}, K={report.branches}: test error {report.test_error_percent:.2f} %, "
            f"{report.trained_parameters:,} trained and {report.deployed_parameters:,} deployed parameters"
        )
    return tuple(members), reports


def _trained(recipe: Recipe, folder: Path, say: Say, progress: bool) -> tuple[TrainingResult, float]:
    """Train, or take what an earlier run left; return it and the seconds that it took."""
    cached = _from_cache(recipe, folder)
    if cached is not None:
        say(f"{folder.name}: trained before, {cached.checkpoint}")
        return cached, 0.0
    say(
        f"{folder.name}: training {recipe.model}, K={recipe.branches}, for {recipe.epochs or recipe.iterations} "
        f"{'epochs' if recipe.epochs else 'iterations'} with {recipe.optimizer.upper()}"
    )
    start = time.perf_counter()
    with _one_thread():
        return train(recipe, folder, progress=progress), time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pictures of 8x8 pixels give two threads nothing to share; beside other load, waiting made them 8 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _from_cache(recipe: Recipe, folder: Path) -> TrainingResult | None:
    checkpoint = folder / CHECKPOINT
    try:
        model, record = load_checkpoint(checkpoint)
        history = read_history(folder / "history.csv")
    except CCNNError:
        return None  # missing, or damaged: train again
    if record.recipe != recipe.to_dict() or record.epochs != (recipe.epochs or record.epochs):
        return None
    return TrainingResult(model, record, history, checkpoint)


def _network_report(model: nn.Module, record: TrainingRecord, seconds: float) -> NetworkReport:
    return NetworkReport(
        branches=record.recipe["branches"],
        trained_parameters=sum(p.numel() for p in model.parameters()),
        deployed_parameters=sum(p.numel() for p in fold(model).parameters()),
        test_error_percent=record.metrics["test_error_percent"],
        test_loss=record.metrics["test_loss"],
        seconds=seconds,
    )


@torch.no_grad()
def _check_folding(result: TrainingResult, data: Data, say: Say) -> None:
    folded = fold(result.model)
    for images, _ in evaluation_batches(data):
        if not torch.equal(folded(images), result.model(images)):
            raise IntegrityError("folding changed the outputs; please report this with your machine and versions")
    say(f"folded: R is gone, and the logits of all {len(data.test)} images are the same to the bit")


@torch.no_grad()
def _classes_by_torch(model: nn.Module, data: Data) -> list[int]:
    return torch.cat([model(images).argmax(1) for images, _ in evaluation_batches(data)]).tolist()


def _doubt(
    results: Sequence[runtime.Classification], data: Data, noise: Sequence[runtime.Classification], fitted_on: int
) -> DoubtReport:
    pairs = list(zip(results, data.test.targets.tolist(), strict=True))
    decided = [(result, target) for result, target in pairs if result.abstained is None]
    return DoubtReport(
        fitted_on=fitted_on,
        coverage=COVERAGE,
        covered=sum(data.labels[target] in result.prediction_set for result, target in pairs),
        mean_set_size=sum(len(result.prediction_set) for result in results) / len(results),
        max_risk=MAX_RISK,
        decided=len(decided),
        wrong=sum(result.predictions[0].index != target for result, target in decided),
        noise_told=_told(noise),
        digits_told=_told(results),
    )


def _told(results: Sequence[runtime.Classification]) -> float:
    return sum(result.ood.percentile > UNLIKE for result in results) / len(results)


def _published(model: nn.Module, record: TrainingRecord, output: Path, data: Data, held_out: Data, say: Say) -> Path:
    """Publish to the local hub, unless the same network is there, and download from it."""
    repo_id = f"local:{output / 'hub' / record.recipe['model']}"
    if not _is_published(record, repo_id):
        checkpoint = output / "ensemble" / CHECKPOINT
        save_checkpoint(checkpoint, model, record)
        images = (images for images, _ in evaluation_batches(data))
        hub.publish(checkpoint, repo_id, images=images, held_out=evaluation_batches(held_out))
        say(f"exported, compared with torch, and published to {repo_id}")
    downloaded = hub.download(repo_id)
    say(f"downloaded from {repo_id}: every file matches its checksum")
    return downloaded


def _is_published(record: TrainingRecord, repo_id: str) -> bool:
    try:
        folder = hub.download(repo_id)
    except CCNNError:
        return False
    details = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return details["record"] == asdict(record)
