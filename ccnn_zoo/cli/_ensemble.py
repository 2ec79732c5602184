"""``ccnn ensemble``: networks trained apart, as the branches of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccnn_zoo.errors import ConfigurationError

from ._output import say


def ensemble(
    sources: Annotated[list[str], typer.Argument(help="Training folders or checkpoints, of one branch each.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint of all of them together.")],
    data: Annotated[
        str | None, typer.Option(help="The data that they were trained on; digits by itself. Its test images are used.")
    ] = None,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Let each network see left and right exchanged, too; one is then enough.")
    ] = False,
) -> None:
    """Join networks that were trained apart into one with as many branches, which gives their mean probabilities.

    With --mirrored each also sees the mirror image: fewer errors, also of a single network, at twice the cost.

    It is exported, published and served as any other. Trained with the same seed and another member each, the networks
    hold out the same pictures, on which its numbers of confidence are fitted.

    Example:  ccnn train --branches 1 --set validation=0.1 --set member=0 -o runs/0

    Example:  ccnn train --branches 1 --set validation=0.1 --set member=1 -o runs/1

    Example:  ccnn ensemble runs/0 runs/1 -o runs/both

    Example:  ccnn ensemble runs/0 --mirrored -o runs/seen-twice
    """
    from ccnn_zoo.checkpoint import load_checkpoint, save_checkpoint
    from ccnn_zoo.train import CHECKPOINT, join_runs, load_data

    from ._held_out import data_of, split
    from ._sources import checkpoint_path

    paths = {source: checkpoint_path(source) for source in sources}
    files = [paths[source].resolve() for source in sources]
    if twice := [source for number, source in enumerate(sources) if files[number] in files[:number]]:
        raise ConfigurationError(f"{twice[0]} is given twice; it would say the same twice. Leave one out.")
    if (output / CHECKPOINT).resolve() in files:
        raise ConfigurationError(f"--output {output} is one of the networks, which would be lost. Name another folder.")
    runs = {source: load_checkpoint(path) for source, path in paths.items()}
    first = runs[sources[0]][1]
    pictures, held_out = load_data(data_of(data, first, sources[0], needed=True), first.recipe.get("image_size")), None
    if first.recipe.get("validation"):
        pictures, held_out = split(pictures, first.recipe, sources[0])
    model, record = join_runs(runs, pictures, held_out, mirrored=mirrored)
    save_checkpoint(output / CHECKPOINT, model, record)
    for source, (_, alone) in runs.items():
        if (error := alone.metrics.get("test_error_percent")) is not None:
            say(f"{source}: test error {error:.2f} %")
    say(f"together: test error {record.metrics['test_error_percent']:.2f} %, saved to {output / CHECKPOINT}")
