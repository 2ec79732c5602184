"""``ccnn calibrate-confidence``: temperature, prediction sets and thresholds, fitted on held-out pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from ._output import say

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ccnn_zoo.runtime import ImageClassifier
    from ccnn_zoo.uncertainty import Confidence

    Fitted = tuple[NDArray, NDArray, NDArray | None]


def calibrate_confidence(
    source: Annotated[Path, typer.Argument(help="An exported .onnx file, or a training folder, which is exported.")],
    pictures: Annotated[
        Path | None, typer.Option(help="Held-out pictures, FOLDER/CLASS/*, used for neither training nor testing.")
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
    """
    from ccnn_zoo.export import add_confidence
    from ccnn_zoo.runtime import load
    from ccnn_zoo.uncertainty import fit

    if (pictures is None) == (source.suffix == ".onnx"):
        raise ConfigurationError(
            f"{source}: an .onnx file needs --pictures FOLDER, held-out pictures in folders of their classes; a "
            "training folder takes the part that its recipe held out (validation), and no --pictures"
        )
    if pictures is not None:
        file, fitted = source, of_pictures(load(source), pictures)
    else:
        file = output or source / "model.onnx"
        fitted = _of_training(source, data, file)
    numbers = fit(*fitted)
    written = add_confidence(file, numbers, output or file, outputs=outputs)
    for line in _told(numbers, fitted):
        say(line)
    say(written)


def of_pictures(classifier: ImageClassifier, folder: Path) -> Fitted:
    """Return the logits of pictures in folders of their classes, the classes, and the branches' logits if any.

    Raises:
        ConfigurationError: a folder's name is no class of the network, or there are none.
    """
    from ccnn_zoo.pictures import LeftOut, folders_in, pictures_in

    left_out, labels = LeftOut(), classifier.metadata.labels
    if not folder.is_dir():
        raise ConfigurationError(f"--pictures takes a folder of folders, one per class, got {str(folder)!r}")
    names = folders_in(folder, left_out)
    if unknown := sorted(set(names) - set(labels)):
        raise ConfigurationError(
            f"{folder / unknown[0]} is no class of {classifier.source}, which knows {', '.join(labels[:10])}"
            f"{' ...' if len(labels) > 10 else ''}. Name the folders as its labels."
        )
    found = [(path, labels.index(name)) for name in names for path in pictures_in(folder / name, left_out)]
    if not found:
        raise ConfigurationError(f"{folder} holds no pictures in folders of the classes {', '.join(labels[:10])}")
    for text in (str(left_out), *left_out.problems):
        if text:
            say(f"left out: {text}", err=True)
    logits, branch_logits = classifier.logits_of(path for path, _ in found)
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
    if not recipe.get("validation"):
        raise ConfigurationError(
            f"the recipe of {folder} held out no pictures (validation=0), and numbers fitted on those that it was "
            "trained or tested on promise nothing. Train with --set validation=0.1, or export it and name others with "
            "--pictures."
        )
    name = data_to_open(named, recipe["data"], folder)
    data, held = load_data(name, recipe.get("image_size")).hold_out(recipe["validation"], recipe["seed"])
    to_onnx(model, file, branch_outputs=getattr(model, "branches", 1) > 1)
    classifier = load(file, device="cpu")
    found, targets = [], []
    for images, classes in evaluation_batches(replace(data, test=held)):
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
