"""``ccnn ensemble``: networks trained apart, as the branches of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo.errors import ConfigurationError

from ._output import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ccnn_zoo.checkpoint import TrainingRecord


def ensemble(
    sources: Annotated[list[str], typer.Argument(help="Training folders or checkpoints, of one branch each.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint of all of them together.")],
    data: Annotated[
        str | None, typer.Option(help="The data that they were trained on; digits by itself. Its test images are used.")
    ] = None,
) -> None:
    """Join networks that were trained apart into one with as many branches, which gives their mean probabilities.

    It is exported, published and served as any other. Trained with the same seed and another member each, the networks
    hold out the same pictures, on which its numbers of confidence are fitted.

    Example:  ccnn train --branches 1 --set validation=0.1 --set member=0 -o runs/0

    Example:  ccnn train --branches 1 --set validation=0.1 --set member=1 -o runs/1

    Example:  ccnn ensemble runs/0 runs/1 -o runs/both
    """
    from dataclasses import replace

    from ccnn_zoo import deep_ensemble
    from ccnn_zoo.checkpoint import load_checkpoint, save_checkpoint
    from ccnn_zoo.train import CHECKPOINT, evaluation_batches, load_data

    from ._held_out import data_of, split
    from ._sources import checkpoint_path

    paths = [checkpoint_path(source) for source in sources]
    if (output / CHECKPOINT).resolve() in [path.resolve() for path in paths]:
        raise ConfigurationError(f"--output {output} is one of the networks, which would be lost. Name another folder.")
    networks, records = zip(*map(load_checkpoint, paths), strict=True)
    _check_pictures(sources, records)
    model, first = deep_ensemble(networks), records[0]
    tests = load_data(data_of(data, first, sources[0], needed=True), first.recipe.get("image_size"))
    parts = {"test": tests}
    if first.recipe.get("validation"):
        parts["test"], parts["validation"] = split(tests, first.recipe, sources[0])
    metrics: dict[str, float] = {}
    for part, pictures in parts.items():
        loss, error = _measured(model, evaluation_batches(pictures))
        metrics |= {f"{part}_loss": loss, f"{part}_error_percent": error}
    recipe = {**first.recipe, "branches": len(networks), "merge": "probability"}
    save_checkpoint(output / CHECKPOINT, model, replace(first, recipe=recipe, metrics=metrics))
    for source, record in zip(sources, records, strict=True):
        if (error := record.metrics.get("test_error_percent")) is not None:
            say(f"{source}: test error {error:.2f} %")
    say(f"together: test error {metrics['test_error_percent']:.2f} %, saved to {output / CHECKPOINT}")


def _check_pictures(sources: Sequence[str], records: Sequence[TrainingRecord]) -> None:
    """Refuse networks of which one has learned from what another held out.

    Raises:
        ConfigurationError: they have not, or were trained on different data.
    """
    first = records[0]
    for source, record in zip(sources, records, strict=True):
        if record.data != first.data:
            raise ConfigurationError(
                f"{source} was trained on {record.data}, {sources[0]} on {first.data}; an ensemble needs one"
            )
        share, wanted = (each.recipe.get("validation", 0) for each in (record, first))
        if (share or wanted) and (share, record.seed) != (wanted, first.seed):
            raise ConfigurationError(
                f"{source} held out other pictures (validation={share}, seed={record.seed}) than {sources[0]} "
                f"(validation={wanted}, seed={first.seed}), so none of them would be held out of all. Train "
                "with one seed and --set member=0, member=1 and so on"
            )


def _measured(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean cross-entropy in nats, and the error in percent."""
    import torch
    from torch.nn.functional import cross_entropy

    loss = wrong = count = 0.0
    with torch.inference_mode():
        for images, targets in batches:
            logits = model(images)
            loss += float(cross_entropy(logits, targets, reduction="sum"))
            wrong += int((logits.argmax(1) != targets).sum())
            count += len(targets)
    return loss / count, 100 * wrong / count
