"""Several runs, trained apart, as one network with a record of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ccnn_zoo.checkpoint import TrainingRecord
from ccnn_zoo.convert import deep_ensemble
from ccnn_zoo.errors import ConfigurationError

from ._batches import evaluation_batches
from ._classification import loss_and_error
from ._data import Data


@torch.inference_mode()
def measure(model: nn.Module, data: Data) -> dict[str, float]:
    """Return ``loss``, the mean cross-entropy in nats, and ``error_percent`` on the test images of the data.

    Args:
        model: in eval mode, on the CPU.
        data: whose ``test`` is looked at.
    """
    losses, wrong = [], []
    for images, targets in evaluation_batches(data):
        logits = model(images).float()
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        wrong.append(logits.argmax(1) != targets)
    return loss_and_error(losses, wrong)


def join_runs(
    runs: Mapping[str, tuple[nn.Module, TrainingRecord]],
    data: Data,
    held_out: Data | None = None,
    *,
    mirrored: bool = False,
) -> tuple[nn.Module, TrainingRecord]:
    """Return the ensemble of networks that were trained apart, and the record of its checkpoint.

    Args:
        runs: two or more, by the names that errors call them; see :func:`ccnn_zoo.deep_ensemble`.
        data: whose test images it is measured on.
        held_out: the same with the images that all of them held out as its test images.
        mirrored: whether each network sees the mirror image too; one run is then enough.

    Returns:
        The folded network, and the first run's record with K, ``merge="probability"`` and what was measured.

    Raises:
        ConfigurationError: one has learned from what another held out, or from no mirrored pictures, or they cannot be
            joined.
    """
    named = {name: record for name, (_, record) in runs.items()}
    _check_pictures(named)
    if mirrored:
        _check_flipped(named)
    networks, records = zip(*runs.values(), strict=True)
    model = deep_ensemble(networks, mirrored=mirrored)
    parts = {"test": data, "validation": held_out}
    metrics = {
        f"{part}_{name}": value
        for part, pictures in parts.items()
        if pictures is not None
        for name, value in measure(model, pictures).items()
    }
    made = model.conversion
    recipe = {**records[0].recipe, "branches": made.branches, "merge": made.merge}
    if mirrored:
        recipe["model_kwargs"] = {**recipe.get("model_kwargs", {}), "mirrored": list(made.mirrored)}
    return model, replace(records[0], recipe=recipe, metrics=metrics)


def _check_flipped(records: Mapping[str, TrainingRecord]) -> None:
    """Refuse networks that know no mirrored pictures.

    Raises:
        ConfigurationError: one was trained without.
    """
    for source, record in records.items():
        if not record.recipe.get("flip"):
            raise ConfigurationError(
                f"{source} was trained without mirrored pictures (flip=0), so it does not know mirror images. "
                "Leave mirrored (--mirrored) out, or train with --set flip=0.5 if your classes look alike in the mirror"
            )


def _check_pictures(records: Mapping[str, TrainingRecord]) -> None:
    """Refuse networks of which one has learned from what another held out.

    Raises:
        ConfigurationError: they have not, or were trained on different data.
    """
    named, first = next(iter(records.items()))
    for source, record in records.items():
        if record.data != first.data:
            raise ConfigurationError(
                f"{source} was trained on {record.data}, {named} on {first.data}; an ensemble needs one"
            )
        share, wanted = (each.recipe.get("validation", 0) for each in (record, first))
        if (share or wanted) and (share, record.seed) != (wanted, first.seed):
            raise ConfigurationError(
                f"{source} held out other pictures (validation={share}, seed={record.seed}) than {named} "
                f"(validation={wanted}, seed={first.seed}), so none of them would be held out of all. Train "
                "with one seed and --set member=0, member=1 and so on"
            )
