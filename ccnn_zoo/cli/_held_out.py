"""The pictures of a training: those to compare on, and those held out, on which numbers of confidence are fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccnn_zoo.errors import ConfigurationError

from ._output import say

if TYPE_CHECKING:
    from torch import Tensor

    from ccnn_zoo.checkpoint import TrainingRecord
    from ccnn_zoo.metadata import ModelMetadata
    from ccnn_zoo.train import Data

PICTURES = Annotated[
    Path | None, typer.Option(help="Held-out pictures, FOLDER/CLASS/*, used for neither training nor testing.")
]
REMEDY = "Train with --set validation=0.1, or name others, used for neither training nor testing, with --pictures"


def data_of(
    given: str | None, record: TrainingRecord | None, source: Path | str, *, needed: bool = False
) -> str | None:
    """Return the name of the data to compare on: see :func:`ccnn_zoo.train.data_to_open`.

    Args:
        given: by the user.
        record: of the checkpoint.
        source: the checkpoint.
        needed: without data it cannot go on; else that there are none is said.

    Raises:
        ConfigurationError: they are needed, and the user must name them.
    """
    from ccnn_zoo.train import data_to_open

    try:
        return data_to_open(given, record.recipe.get("data") if record else None, source)
    except ConfigurationError as error:
        if needed:
            raise
        say(f"compared on seeded pictures only: {error}", err=True)
        return None


def split(data: Data, recipe: Mapping[str, Any], source: Path | str) -> tuple[Data, Data]:
    """Return the data without what a training held out, and the same with that in the place of the test part.

    Raises:
        ConfigurationError: it held out nothing.
    """
    from dataclasses import replace

    if not recipe.get("validation"):
        raise ConfigurationError(
            f"the recipe of {source} held out no pictures (validation=0), and numbers fitted on those that it was "
            f"trained or tested on promise nothing. {REMEDY}."
        )
    for name in ("start_from", "teacher"):
        if recipe.get(name):
            say(
                f"{source} learned from {recipe[name]} ({name}): if that was trained with another validation or seed, "
                "it has seen the pictures that are taken for held out, and the numbers promise too much",
                err=True,
            )
    kept, held = data.hold_out(recipe["validation"], recipe["seed"])
    return kept, replace(data, test=held)


def labelled_pictures(folder: Path, labels: tuple[str, ...], source: str) -> list[tuple[Path, int]]:
    """Return the pictures in folders of their classes, and the classes.

    Args:
        folder: of folders that are called as the classes.
        labels: of the network.
        source: name of the network, for the message.

    Raises:
        ConfigurationError: a folder's name is no class of the network, or there are no pictures.
    """
    from ccnn_zoo.pictures import LeftOut, folders_in, pictures_in

    left_out = LeftOut()
    if not folder.is_dir():
        raise ConfigurationError(f"--pictures takes a folder of folders, one per class, got {str(folder)!r}")
    names = folders_in(folder, left_out)
    if unknown := sorted(set(names) - set(labels)):
        raise ConfigurationError(
            f"{folder / unknown[0]} is no class of {source}, which knows {', '.join(labels[:10])}"
            f"{' ...' if len(labels) > 10 else ''}. Name the folders as its labels."
        )
    found = [(path, labels.index(name)) for name in names for path in pictures_in(folder / name, left_out)]
    if not found:
        raise ConfigurationError(f"{folder} holds no pictures in folders of the classes {', '.join(labels[:10])}")
    for text in (str(left_out), *left_out.problems):
        if text:
            say(f"left out: {text}", err=True)
    return found


def preprocessed(found: list[tuple[Path, int]], metadata: ModelMetadata) -> Iterator[tuple[Tensor, int]]:
    """Yield pictures as the network takes them, (C, H, W), with their classes.

    Raises:
        ImageError: one cannot be read; names it.
    """
    from timm.data import create_transform

    from ccnn_zoo.pictures import read

    transform = create_transform(**metadata.preprocessing())
    for path, target in found:
        yield transform(read(path, metadata.input_size[0], str(path))), target
