"""``ccnn classify``: labels for pictures, with neither torch nor timm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo.errors import ImageError

if TYPE_CHECKING:
    from ccnn_zoo.runtime import Classification

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def classify(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    model: Annotated[str, typer.Option(help="An .onnx file, a repository folder, local:FOLDER or org/name.")],
    device: Annotated[str, typer.Option(help="auto, cuda or cpu; the last two are strict.")] = "auto",
    top_k: Annotated[int, typer.Option(help="How many of the most probable classes to print.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Pictures that are classified at once.")] = 32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture and line.")] = False,
) -> None:
    """Print the most probable classes of pictures.

    A picture that cannot be read is named on stderr; the others are classified all the same, and the exit code is 1.

    Example:  ccnn classify cat.jpg photos/ --model local:ccnn-demo/hub/ccnn_resnet18_cifar
    """
    from ccnn_zoo.runtime import load

    classifier = load(model, device=device, revision=revision, batch_size=batch_size)
    failed = False
    for result in classifier.classify_stream(_pictures(images), top_k):
        if result.error is not None:
            failed = True
            typer.echo(result.error, err=True)
        if as_json:
            typer.echo(json.dumps(asdict(result)))
        elif result.error is None:
            typer.echo(_line(result))
    if failed:
        raise typer.Exit(1)


def _pictures(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [child for child in sorted(path.rglob("*")) if child.suffix.lower() in PICTURES]
        if not found:
            raise ImageError(f"{path} holds no pictures ({', '.join(PICTURES)}). Name files, or another folder.")
        yield from found


def _line(result: Classification) -> str:
    classes = ", ".join(f"{p.label} {100 * p.probability:.1f}%" for p in result.predictions)
    return f"{os.fspath(result.source)}: {classes}"
