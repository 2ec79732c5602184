"""``ccnn calibrate-confidence``: temperature, prediction sets and thresholds, fitted on held-out pictures."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from ._held_out import PICTURES, labelled_pictures, split
from ._output import say

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ccnn_zoo.runtime import ImageClassifier
    from ccnn_zoo.uncertainty import Confidence

    Fitted = tuple[NDArray, NDArray, NDArray | None]


def calibrate_confidence(
    source: Annotated[Path, typer.Argument(help="An exported .onnx file, or a training folder, which is exported.")],
    pictures: PICTURES = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="JSON that describes a file of somebody else's: labels, mean, std, input_size, crop_pct ..."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The training folder's data, whose held-out part is taken; digits by itself.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; the .onnx file itself by default.")
    ] = None,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Let the graph itself give probabilities, uncertainty and ood_score.")
    ] = False,
) -> None:
    """Fit a file's temperature, prediction sets, decisions and out-of-distribution percentiles, and write them into it.

    (This "calibration" is of probabilities, and has nothing to do with the calibration kernels R.)

    Example:  ccnn calibrate-confidence runs/digits -o digits.onnx

    Example:  ccnn calibrate-confidence model.onnx --pictures held-out/ --outputs

    Example:  ccnn calibrate-confidence theirs.onnx --metadata theirs.json --pictures held-out/ -o known.onnx
    """
    from ccnn_zoo.export import add_confidence, describe
    from ccnn_zoo.runtime import load
    from ccnn_zoo.uncertainty import fit

    if metadata is not None and source.suffix != ".onnx":
        raise ConfigurationError("--metadata describes an .onnx file that says nothing of itself. Leave it out.")
    if (pictures is None) == (source.suffix == ".onnx"):
        raise ConfigurationError(
            f"{source}: an .onnx file needs --pictures FOLDER, held-out pictures in folders of their classes; a "
            "training folder takes the part that its recipe held out (validation), and no --pictures"
        )
    with TemporaryDirectory(prefix="ccnn-confidence-") as folder:
        if pictures is not None:
            file, target = source, output or source
            if metadata is not None:
                file = Path(folder) / source.name
                describe(source, _read(metadata), file)
            fitted = of_pictures(load(file), pictures)
        else:
            file, target = Path(folder) / "model.onnx", output or source / "model.onnx"
            fitted = _of_training(source, data, file)
        numbers = fit(*fitted)
        written = add_confidence(file, numbers, target, outputs=outputs)
    for line in _told(numbers, fitted):
        say(line)
    say(written)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"--metadata takes a JSON file, {path} is none ({error})") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"--metadata takes a JSON object, {path} holds another value")
    return found


def of_pictures(classifier: ImageClassifier, folder: Path) -> Fitted:
    """Return the logits of pictures in folders of their classes, the classes, and the branches' logits if any."""
    found = labelled_pictures(folder, classifier.metadata.labels, classifier.source)
    logits, branch_logits = classifier.logits_of(path for path, _ in found)
    if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-3):
        raise ConfigurationError(
            f"{classifier.source} gives probabilities, not logits, and no Softmax at its end that could be passed by. "
            "Export it without its last layer."
        )
    return logits, np.array([target for _, target in found]), branch_logits


def _of_training(folder: Path, named: str | None, file: Path) -> Fitted:
    from ccnn_zoo.checkpoint import load_checkpoint
    from ccnn_zoo.export import to_onnx
    from ccnn_zoo.runtime import Outputs, load
    from ccnn_zoo.train import CHECKPOINT, data_to_open, evaluation_batches, load_data

    if not (folder / CHECKPOINT).is_file():
        raise RepositoryError(f"{folder} is no training folder: it holds no {CHECKPOINT}. `ccnn train` makes one.")
    model, record = load_checkpoint(folder / CHECKPOINT)
    recipe = record.recipe
    name = data_to_open(named, recipe["data"], folder)
    _, held = split(load_data(name, recipe.get("image_size")), recipe, folder)
    to_onnx(model, file, branch_outputs=getattr(model, "branches", 1) > 1)
    classifier = load(file, device="cpu")
    found, targets = [], []
    for images, classes in evaluation_batches(held):
        found.append(classifier.predict_branches(images.numpy()))
        targets.append(classes.numpy())
    logits, branch_logits = Outputs.joined(found)
    return logits, np.concatenate(targets), branch_logits


def _told(numbers: Confidence, fitted: Fitted) -> list[str]:
    from ccnn_zoo.uncertainty import prediction_sets, probabilities

    logits, targets, _ = fitted
    probability = probabilities(logits, numbers.temperature)
    wrong = 100 * float((logits.argmax(1) != targets).mean())
    lines = [f"{numbers.pictures} held-out pictures, {wrong:.2f} % wrong; temperature {numbers.temperature:.3f}"]
    for coverage in numbers.sets["lac"]:
        threshold = numbers.threshold_of_set(float(coverage))
        size = float(prediction_sets(probability, threshold).sum(1).mean())
        lines.append(f"coverage {100 * float(coverage):g} %: sets of {size:.2f} classes on average")
    for risk, threshold in numbers.decide.items():
        share = 0.0 if threshold is None else 100 * float((probability.max(1) >= threshold).mean())
        lines.append(f"at most {100 * float(risk):g} % of decisions wrong: decides {share:.1f} % of pictures")
    return lines
