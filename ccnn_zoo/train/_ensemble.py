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
    runs: Mapping[str, tuple[nn.Module, TrainingRecord]], data: Data, held_out: Data | None = None
) -> tuple[nn.Module, TrainingRecord]:
    """Return the ensemble of networks that were trained apart, and the record of its checkpoint.

    Args:
        runs: two or more, by the names that errors call them; see :func:`ccnn_zoo.deep_ensemble`.
        data: whose test images it is measured on.
        held_out: the same with the images that all of them held out as its test images.

    Returns:
        The folded network, and the first run's record with K, ``merge="probability"`` and what was measured.

    Raises:
        ConfigurationError: one has learned from what another held out, or they cannot be joined.
    """
    _check_pictures({name: record for name, (_, record) in runs.items()})
    networks, records = zip(*runs.values(), strict=True)
    model = deep_ensemble(networks)
    parts = {"test": data, "validation": held_out}
    metrics = {
        f"{part}_{name}": value
        for part, pictures in parts.items()
        if pictures is not None
        for name, value in measure(model, pictures).items()
    }
    recipe = {**records[0].recipe, "branches": len(networks), "merge": "probability"}
    return model, replace(records[0], recipe=recipe, metrics=metrics)


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
