"""The steps of the main job, in order, on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ccnn_zoo import hub, runtime
from ccnn_zoo._files import replacing
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import CCNNError, IntegrityError
from ccnn_zoo.train import Data, Recipe, TrainingResult, evaluation_batches, load_data, read_history, train

from ._picture import draw

Say = Callable[[str], None]


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
        recipe: of the calibrated network; None is the packaged ``digits``. The plain one differs in ``branches``.
        say: what is told the user, line by line.
        progress: show progress bars on stderr.

    Raises:
        RepositoryError: ``output`` cannot be written.
        DeviceError: ``device="cuda"`` and CUDA cannot run.
        ExportError: the exported network failed its check.
    """
    output = Path(output)
    recipe = recipe or Recipe.load("digits")
    runtime.check_device(device)
    data = load_data(recipe.data, recipe.image_size)
    say(f"{data.name}: {len(data.train)} to train on, {len(data.test)} held out")

    plain, plain_seconds = _trained(replace(recipe, branches=1), output / "plain", say, progress)
    calibrated, seconds = _trained(recipe, output / "calibrated", say, progress)
    reports = [_network_report(plain, plain_seconds), _network_report(calibrated, seconds)]
    for report in reports:
        say(
            f"K={report.branches}: test error {report.test_error_percent:.2f} %, {report.trained_parameters:,} trained "
            f"and {report.deployed_parameters:,} deployed parameters"
        )
    expected = _classes_by_torch(calibrated, data, say)
    folder = _published(calibrated, output / "hub" / recipe.model, data, say)
    classifier = runtime.load(f"local:{folder}", device=device)
    results = classifier.classify(picture for picture, _ in data.test)
    say(f"classified {len(results)} digits on {classifier.provider}")
    found = [result.predictions[0].index for result in results]
    wrong = sum(index != target for index, target in zip(found, data.test.targets.tolist(), strict=True))
    same = sum(index == other for index, other in zip(found, expected, strict=True))
    say(f"ONNX network: {100 * wrong / len(found):.2f} % wrong, {same} of {len(found)} classes as in torch")

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


def _published(result: TrainingResult, folder: Path, data: Data, say: Say) -> Path:
    """Publish to the local hub, unless the same network is there, and download from it."""
    repo_id = f"local:{folder}"
    if not _is_published(result, repo_id):
        hub.publish(result.checkpoint, repo_id, images=(images for images, _ in evaluation_batches(data)))
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
