"""``ccnn detect``: objects in pictures, with neither torch nor timm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ccnn_zoo._files import replacing
from ccnn_zoo.errors import ConfigurationError, ImageError

from ._interrupts import ends_on_interrupt
from ._options import DEVICE, IMAGES, JSON_LINES, MODEL, REVISION, TOKEN, WORKERS
from ._output import say
from ._pictures import Pictures

if TYPE_CHECKING:
    from ccnn_zoo.runtime import Detection, ObjectDetector

RESULTS = "detections.jsonl"
"""Name of the file of results in ``--output``."""


@ends_on_interrupt()
def detect(
    images: Annotated[list[Path], IMAGES],
    model: Annotated[str, MODEL],
    device: Annotated[str, DEVICE] = "auto",
    score: Annotated[float, typer.Option(help="Leave out objects that the network is less sure of.")] = 0.5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Folder for pictures with boxes (PNG) and {RESULTS}.")
    ] = None,
    workers: Annotated[int, WORKERS] = 2,
    revision: Annotated[str | None, REVISION] = None,
    token: Annotated[bool, TOKEN] = False,
    as_json: Annotated[bool, JSON_LINES] = False,
) -> None:
    """Find objects in pictures: boxes in pixels (x1, y1, x2, y2), labels and scores, and pictures that show them.

    A picture that cannot be read is named on stderr; the others are looked through all the same, and the exit code is
    1. With --output every picture is written whole or not at all, and the results take their name when all are there.
    Boxes have no agreement of branches: a detector's branches meet in its features, before anything is found.

    Example:  ccnn detect cells/ --model detector.onnx --score 0.6 --output found
    """
    from ccnn_zoo.runtime import load_detector

    if output is not None:
        _check_output(output, images)
    detector = load_detector(model, device=device, revision=revision, token=token)
    if detector.metadata.branches > 1:
        say(
            f"the {detector.metadata.branches} branches of {detector.metadata.architecture} meet in its features, "
            "before boxes are found, so boxes carry scores and no agreement of branches",
            err=True,
        )
    failed, pictures = 0, Pictures(images)
    with _results(output) as file:
        names = _Names(images, output)
        for found in detector.detect_stream(map(pictures.opened, pictures), score, workers=workers):
            record = asdict(found)
            if found.error is None and output is not None:
                record["picture"] = names.of(found.source)
                found = _drawn(detector, found, pictures, output / record["picture"])
                record |= {"error": found.error} if found.error else {}
            failed += found.error is not None
            _show(found, record, file, as_json=as_json)
    if pictures.tell() or failed:
        raise typer.Exit(1)


def _check_output(output: Path, images: Iterable[Path]) -> None:
    """Refuse a folder in which pictures are looked for: a second run would find what the first has drawn."""
    target = output.resolve()
    if target.exists() and not target.is_dir():
        raise ConfigurationError(f"--output {output} is a file. Name a folder.")
    for path in images:
        source = path.resolve() if os.path.isdir(path) else path.resolve().parent
        if target == source or (os.path.isdir(path) and target.is_relative_to(source)):
            raise ConfigurationError(f"--output {output} lies where pictures are read ({source}). Name another folder.")


@contextmanager
def _results(output: Path | None) -> Iterator[TextIO | None]:
    """Yield the stream for results, or None; the file takes its name at the end."""
    if output is None:
        yield None
        return
    with replacing(output / RESULTS) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


class _Names:
    """Names for drawn pictures: those of the sources below the folders named, none given twice."""

    def __init__(self, images: Iterable[Path], output: Path | None) -> None:
        self._folders = [path for path in images if os.path.isdir(path)]
        self._taken: set[str] = set()

    def of(self, source: str) -> str:
        path = Path(source)
        folder = next((folder for folder in self._folders if path.is_relative_to(folder)), path.parent)
        name = stem = path.relative_to(folder).with_suffix("").as_posix()
        number = 1
        while name.lower() in self._taken:  # some file systems take names for equal that differ in case
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.lower())
        return f"{name}.png"


def _drawn(detector: ObjectDetector, found: Detection, pictures: Pictures, path: Path) -> Detection:
    """Write the picture with its boxes; return the detection, with an error if the picture is gone by now."""
    from ccnn_zoo.runtime import draw

    try:
        picture = draw(pictures.opened(found.source), found, detector.metadata.labels)
    except ImageError as error:
        return replace(found, error=str(error))
    with replacing(path) as temporary:
        picture.save(temporary)
    return found


def _show(found: Detection, record: dict[str, Any], file: TextIO | None, *, as_json: bool) -> None:
    line = json.dumps(record)
    if file is not None:
        file.write(line + "\n")
    if as_json:
        say(line)
    elif found.error is None:
        # With a file, the boxes stand there.
        for text in islice(_lines(found), None if file is None else 1):
            say(text)
    if found.error is not None:
        say(found.error, err=True)


def _lines(found: Detection) -> Iterator[str]:
    yield f"{os.fspath(found.source)}: {len(found.objects)} object{'s' if len(found.objects) != 1 else ''}"
    for each in found.objects:
        yield f"  {each.label} {100 * each.score:.1f}%  " + ", ".join(f"{side:.1f}" for side in each.box)
