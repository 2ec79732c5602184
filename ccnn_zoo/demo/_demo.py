"""The steps of the main job, in order, on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccnn_zoo import hub, runtime
from ccnn_zoo._files import replacing
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import CCNNError, ConfigurationError, IntegrityError
from ccnn_zoo.train import Data, Recipe, TrainingResult, evaluation_batches, load_data, read_history, train

from ._picture import draw

Say = Callable[[str], None]

COVERAGE, MAX_RISK = 0.95, 0.05
UNLIKE = 95  # percentile of the held-out digits


@dataclass(frozen=True)
class NetworkReport:
    """One trained network.

    Args:
        branches: number K of branches.
        trained_parameters: weights that training moves, R included.
        deployed_parameters: weights of the folded network.
        test_error_percent: on the held-out digits, after the last epoch.
        test_loss: mean cross-entropy on the same.
        seconds: of training; 0 if it was found in the cache.
    """

    branches: int
    trained_parameters: int
    deployed_parameters: int
    test_error_percent: float
    test_loss: float
    seconds: float


@dataclass(frozen=True)
class DoubtReport:
    """What the downloaded file says of its own answers.

    Args:
        fitted_on: digits held out of the training, on which the numbers were fitted.
        coverage: asked of the sets of classes.
        covered: test digits whose true class is in their set.
        mean_set_size: classes in a set.
        max_risk: asked of the decisions.
        decided: test digits that the file decides; the others it leaves to a person.
        wrong: of these, the wrong ones.
        noise_told: share of as many pictures of noise that are unlike more than 95 % of the held-out digits.
        digits_told: the same of the test digits, about 0.05 by construction.
    """

    fitted_on: int
    coverage: float
    covered: int
    mean_set_size: float
    max_risk: float
    decided: int
    wrong: int
    noise_told: float
    digits_told: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Args:
        plain: the network with one branch.
        calibrated: the one with K branches, same recipe.
        data: name of the data.
        images: held-out digits.
        seed: of both trainings.
        epochs: of both trainings.
        provider: the execution provider that classified the digits.
        onnx_error_percent: error of the downloaded ONNX network on the held-out digits.
        same_class_as_torch: digits, of ``images``, on which ONNX and torch agree.
        doubt: what the file knows of its own answers.
        versions: package name to version, as of training.
        picture: curves, digits and R as a PNG file.
        repository: folder of the published network.
    """

    plain: NetworkReport
    calibrated: NetworkReport
    data: str
    images: int
    seed: int
    epochs: int
    provider: str
    onnx_error_percent: float
    same_class_as_torch: int
    doubt: DoubtReport
    versions: dict[str, str]
    picture: str
    repository: str


def run(
    output: str | os.PathLike[str] = "ccnn-demo",
    *,
    device: str = "auto",
    recipe: Recipe | None = None,
    say: Say = print,
    progress: bool = True,
) -> DemoReport:
    """Do the main job, leaving ``demo.png``, ``demo.json``, both trained networks and a repository in ``output``.

    What an earlier run left there is used again if it was trained by the same recipe and is whole.

    Args:
        output: folder, made if missing.
        device: of the classification: ``"auto"``, ``"cuda"`` or ``"cpu"``.
        recipe: of the calibrated network; None is the packaged ``digits`` with a fifth of the training digits held out,
            on which the numbers of confidence are fitted. The plain one differs in ``branches``.
        say: what is told the user, line by line.
        progress: show progress bars on stderr.

    Raises:
        ConfigurationError: ``recipe`` holds no images out.
        RepositoryError: ``output`` cannot be written.
        DeviceError: ``device="cuda"`` and CUDA cannot run.
        ExportError: the exported network failed its check.
    """
    output = Path(output)
    recipe = recipe or replace(Recipe.load("digits"), validation=0.2)
    if not recipe.validation:
        raise ConfigurationError(
            f"validation={recipe.validation}: confidence is fitted on held-out images; hold some out: 0.2"
        )
    runtime.check_device(device)
    data = load_data(recipe.data, recipe.image_size)
    kept, held = data.hold_out(recipe.validation, recipe.seed)
    say(f"{data.name}: {len(kept.train)} to train on, {len(held)} to fit doubt on, {len(data.test)} to test")

    plain, plain_seconds = _trained(replace(recipe, branches=1), output / "plain", say, progress)
    calibrated, seconds = _trained(recipe, output / "calibrated", say, progress)
    reports = [_network_report(plain, plain_seconds), _network_report(calibrated, seconds)]
    for report in reports:
        say(
            f"K={report.branches}: test error {report.test_error_percent:.2f} %, {report.trained_parameters:,} trained "
            f"and {report.deployed_parameters:,} deployed parameters"
        )
    expected = _classes_by_torch(calibrated, data, say)
    folder = _published(calibrated, output / "hub" / recipe.model, data, replace(data, test=held), say)
    classifier = runtime.load(f"local:{folder}", device=device)
    asked = {"coverage": COVERAGE, "max_risk": MAX_RISK}
    results = classifier.classify((picture for picture, _ in data.test), **asked)
    say(f"classified {len(results)} digits on {classifier.provider}")
    found = [result.predictions[0].index for result in results]
    wrong = sum(index != target for index, target in zip(found, data.test.targets.tolist(), strict=True))
    same = sum(index == other for index, other in zip(found, expected, strict=True))
    say(f"ONNX network: {100 * wrong / len(found):.2f} % wrong, {same} of {len(found)} classes as in torch")

    noise = np.random.default_rng(recipe.seed).integers(0, 256, (len(results), *data.input_size[1:]), np.uint8)
    doubt = _doubt(results, data, classifier.classify(map(Image.fromarray, noise), **asked), len(held))
    say(
        f"sets of {100 * COVERAGE:g} %: {doubt.covered} of {len(results)} hold the right class, "
        f"{doubt.mean_set_size:.2f} classes each; at {100 * MAX_RISK:g} % risk it decides {doubt.decided} and is wrong "
        f"on {doubt.wrong}; it tells {100 * doubt.noise_told:.0f} % of pictures of noise from digits"
    )

    picture = output / "demo.png"
    draw(picture, {"K=1 (plain)": plain.history, f"K={recipe.branches}": calibrated.history}, data, results, calibrated)
    say(f"picture: {picture}")
    report = DemoReport(
        plain=reports[0],
        calibrated=reports[1],
        data=data.name,
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


def _trained(recipe: Recipe, folder: Path, say: Say, progress: bool) -> tuple[TrainingResult, float]:
    """Train, or take what an earlier run left; return it and the seconds that it took."""
    cached = _from_cache(recipe, folder)
    if cached is not None:
        say(f"K={recipe.branches}: trained before, {cached.checkpoint}")
        return cached, 0.0
    say(
        f"K={recipe.branches}: training {recipe.model} for {recipe.epochs or recipe.iterations} "
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
    checkpoint = folder / "last.safetensors"
    try:
        model, record = load_checkpoint(checkpoint)
        history = read_history(folder / "history.csv")
    except CCNNError:
        return None  # missing, or damaged: train again
    if record.recipe != recipe.to_dict() or record.epochs != (recipe.epochs or record.epochs):
        return None
    return TrainingResult(model, record, history, checkpoint)


def _network_report(result: TrainingResult, seconds: float) -> NetworkReport:
    folded = fold(result.model)
    return NetworkReport(
        branches=result.record.recipe["branches"],
        trained_parameters=sum(p.numel() for p in result.model.parameters()),
        deployed_parameters=sum(p.numel() for p in folded.parameters()),
        test_error_percent=result.record.metrics["test_error_percent"],
        test_loss=result.record.metrics["test_loss"],
        seconds=seconds,
    )


@torch.no_grad()
def _classes_by_torch(result: TrainingResult, data: Data, say: Say) -> list[int]:
    """Return the classes of the held-out images, after comparing the folded network to the bit."""
    folded = fold(result.model)
    logits = []
    for images, _ in evaluation_batches(data):
        logits.append(result.model(images))
        if not torch.equal(folded(images), logits[-1]):
            raise IntegrityError("folding changed the outputs; please report this with your machine and versions")
    say(f"folded: R is gone, and the logits of all {len(data.test)} images are the same to the bit")
    return torch.cat(logits).argmax(1).tolist()


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


def _published(result: TrainingResult, folder: Path, data: Data, held: Data, say: Say) -> Path:
    """Publish to the local hub, unless the same network is there, and download from it."""
    repo_id = f"local:{folder}"
    if not _is_published(result, repo_id):
        images = (images for images, _ in evaluation_batches(data))
        hub.publish(result.checkpoint, repo_id, images=images, held_out=evaluation_batches(held))
        say(f"exported, compared with torch, and published to {repo_id}")
    downloaded = hub.download(repo_id)
    say(f"downloaded from {repo_id}: every file matches its checksum")
    return downloaded


def _is_published(result: TrainingResult, repo_id: str) -> bool:
    try:
        folder = hub.download(repo_id)
    except CCNNError:
        return False
    details = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return details["record"] == asdict(result.record)
