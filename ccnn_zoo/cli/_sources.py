"""What a user may name a network by on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm

from ccnn_zoo import hub
from ccnn_zoo._base.named import hub_name, refuse_weights
from ccnn_zoo._files.folders import is_there
from ccnn_zoo._tasks import task_of_texts
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, load_repository, task_of
from ccnn_zoo.errors import ConfigurationError, RepositoryError
from ccnn_zoo.export import metadata_of
from ccnn_zoo.train import CHECKPOINT, evaluation_batches, load_data

from ._held_out import REMEDY, labelled_pictures, preprocessed, split
from ._output import say

INT8_IMAGES = 512

if TYPE_CHECKING:
    from torch import nn

    from ._parts import Part


def find(source: str, token: bool = False) -> Path | str:
    """Return what ``source`` names: a checkpoint file, the folder of a verified repository, or a timm name.

    Args:
        source: a checkpoint or training folder, a repository folder (as it is or as ``local:FOLDER``), a Hub id
            ``org/name`` in any spelling of :func:`ccnn_zoo._base.named.hub_name`, or a timm name.
        token: send the stored token to the Hub, for private repositories.

    Raises:
        RepositoryError: ``source`` is none of these.
        IntegrityError: a file of the repository differs from its checksum.
        ConfigurationError: it is a pickle, or an address of something else.
    """
    path = checkpoint_path(source)
    if token and (path.is_file() or timm.is_model(source)):
        raise ConfigurationError(f"--token is for Hub repositories, {source!r} is none. Leave it out.")
    if path.is_file():
        if path.suffix != ".safetensors":
            refuse_weights(path)
        return path
    if timm.is_model(source):
        return source
    if (is_there(path) and path.is_dir()) or source.startswith("local:"):
        return hub.download(f"local:{path}" if path.is_dir() else source, token=token)
    if hub_name(source) is not None:
        try:
            return hub.download(source, token=token)
        except RepositoryError as error:  # a misspelt folder looks like a Hub id
            raise RepositoryError(f"there is no file or folder {source!r} here, and on the Hub: {error}") from error
    raise RepositoryError(
        f"no network found for {source!r}: it is no file or folder, no timm name (`ccnn list`), and neither "
        "local:FOLDER nor a Hub id org/name. Check the spelling."
    )


def load_network(found: Path | str) -> tuple[nn.Module, TrainingRecord | None]:
    """Return a classifier in eval mode, and how it was trained where that is recorded.

    Args:
        found: as of :func:`find`; a timm name needs pretrained weights.

    Raises:
        IntegrityError: the checkpoint is damaged.
    """
    if isinstance(found, Path) and found.is_file():
        return load_checkpoint(found)
    if isinstance(found, Path):
        return load_repository(found), None
    return timm.create_model(found, pretrained=True).eval(), None


def checkpoint_path(source: str) -> Path:
    """Return the path that ``source`` names; for a training folder that of its checkpoint."""
    path = Path(source).expanduser()
    return path / CHECKPOINT if (path / CHECKPOINT).is_file() else path


def weights_of(found: Path) -> Path:
    """Return the file that holds the weights of a checkpoint or repository."""
    return found / "model.safetensors" if found.is_dir() else found


def part_of(found: Path | str) -> Part:
    """Return what this room has for the task of what :func:`find` found."""
    task = task_of_texts({}) if isinstance(found, str) else task_of(weights_of(found))
    return task.part(__package__)


def beside_checkpoint(
    path: Path, precisions: Iterable[str] = (), data: str | None = None, pictures: Path | None = None
) -> dict[str, Any]:
    """Return what publishing a checkpoint takes besides it, else nothing.

    Args:
        path: the checkpoint, or a folder.
        precisions: those of the further ONNX files that are to be made from the checkpoint.
        data: name of the data that it was trained on; None takes digits where the checkpoint says so, else none.
        pictures: held-out ones in folders of their classes; None takes what the training held out, if anything.

    Returns:
        test images to verify on, training images where int8 is wanted, held-out ones where there are any, and the
        pictures that the training drew.

    Raises:
        ConfigurationError: int8 is wanted and there are no data, or data or pictures are named for what is no
            checkpoint, or of a detector.
    """
    if not path.is_file():
        for option, value in (("data", data), ("pictures", pictures)):
            if value is not None:
                raise ConfigurationError(f"--{option} is for checkpoints, {path} is none. Leave it out.")
        return {}
    curves = path.with_name("curves.png")
    found = part_of(path).beside(path, precisions, data, pictures)
    drawn = (
        {name: path.with_name(f"{name}.png") for name in ("confidence", "doubtful")} if path.name == CHECKPOINT else {}
    )
    there = {name: picture for name, picture in drawn.items() if picture.is_file()}
    return {"images": None, **found, "curves": curves if curves.is_file() else None, "pictures": there}


def export_images(
    data: str | None,
    precisions: Iterable[str],
    model: nn.Module | None = None,
    record: TrainingRecord | None = None,
    *,
    source: Path | str = "it",
    held_out: bool | None = False,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Return the images that an export takes: test images, training images for int8's ranges, and held-out ones.

    Args:
        data: name of the data, None where there are none.
        precisions: those to export.
        model: the network, needed with ``pictures``.
        record: how it was trained.
        source: its name, for messages.
        held_out: numbers of confidence are wanted, fitted on what the training held out or on ``pictures``; None where
            there are such, else it is said that there are none.
        pictures: held-out ones in folders of their classes.

    Raises:
        ConfigurationError: int8 is wanted and there are no data; or nothing was held out.
    """
    recipe = record.recipe if record else {}
    found: dict[str, Any] = {}
    if pictures is not None:
        metadata = metadata_of(model)
        found["held_out"] = preprocessed(labelled_pictures(pictures, metadata.labels, str(source)), metadata)
    elif held_out and data is None:
        raise ConfigurationError(f"nothing says on which data {source} was trained, or what was held out. {REMEDY}.")
    elif held_out is None:
        why = _cannot_hold_out(data, recipe)
        held_out = why is None
        if why:
            say(f"without numbers of confidence: {why}. {REMEDY}.", err=True)
    wants_training = "int8" in precisions
    if data is None and wants_training:
        raise ConfigurationError(
            "int8 needs real images to measure ranges on, and the network does not say on which data it was trained. "
            "Name them: --data digits, --data folder:PATH"
        )
    if data is None:
        return found
    loaded = load_data(data, recipe.get("image_size"))
    if held_out and pictures is None:
        loaded, held = split(loaded, recipe, source)
        found["held_out"] = evaluation_batches(held)
    found["images"] = evaluation_batches(loaded)
    if wants_training:
        # Spread over the set, which may be sorted by class; preprocessed as test images are.
        count = min(INT8_IMAGES, len(loaded.train))
        chosen = np.linspace(0, len(loaded.train) - 1, count).astype(np.int64)
        found["int8_images"] = evaluation_batches(replace(loaded, test=loaded.train.subset(chosen)))
    return found


def _cannot_hold_out(data: str | None, recipe: Mapping[str, Any]) -> str | None:
    """Return why nothing can be fitted on what a training held out, or None."""
    if not recipe.get("validation"):
        return "the training held out no pictures (validation=0)"
    if data is None:
        return "the data of the training, of which it held out a part, are not named (--data)"
    return None
