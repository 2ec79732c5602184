"""Weights of a classifier as the start of a detector's backbone."""

from __future__ import annotations

import os
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.convert import CalibratedNetwork, calibrate
from ccnn_zoo.errors import ConfigurationError

from ._backbone import DetectorBackbone


def open_classifier(source: str | os.PathLike[str] | nn.Module) -> nn.Module:
    """Return the classifier that ``source`` names.

    That is a module itself, a checkpoint of ours, a timm name, or ``torchvision:`` and a name of torchvision.

    Raises:
        RepositoryError: there is no such checkpoint.
        IntegrityError: the checkpoint is damaged.
        ConfigurationError: timm knows no such network, or cannot fetch its weights.
    """
    if isinstance(source, nn.Module):
        return source
    if os.fspath(source).endswith(".safetensors") or Path(source).is_file():
        return load_checkpoint(source)[0]
    library, _, name = os.fspath(source).rpartition(":")
    try:
        if library == "torchvision":
            return torchvision.models.get_model(name, weights="DEFAULT")
        return timm.create_model(os.fspath(source), pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"backbone_weights={source!r} is neither a checkpoint (.safetensors) nor a network of timm or "
            f"torchvision: whose weights can be had: {error}"
        ) from error


def preprocessing_of(classifier: nn.Module) -> dict[str, tuple[float, ...]]:
    """Return mean and std that a timm network expects, or nothing if it does not say."""
    cfg = getattr(classifier, "pretrained_cfg", None) or {}
    return {f"image_{name}": tuple(cfg[name]) for name in ("mean", "std") if cfg.get(name)}


@torch.no_grad()
def load_classifier(backbone: DetectorBackbone, classifier: nn.Module, mixing: str, diversity: float) -> None:
    """Copy the weights of ``classifier`` into the backbone; a plain network is calibrated first.

    Args:
        backbone: of K branches.
        classifier: a network of ours with the same K, or a plain one (ours with K=1, torchvision's, timm's).
        mixing: of the backbone.
        diversity: how far R starts from uniform where a plain network is calibrated.

    Raises:
        ConfigurationError: the weights do not fit; names the first that do not.
    """
    branches = classifier.conversion.branches if isinstance(classifier, CalibratedNetwork) else 1
    if branches == 1 and backbone.branches > 1:
        classifier = calibrate(classifier, backbone.branches, mixing=mixing, diversity=diversity)
    elif branches != backbone.branches:
        raise ConfigurationError(
            f"backbone_weights has branches={branches}, the detector branches={backbone.branches}; give both the same, "
            "or weights of a plain network"
        )
    if isinstance(classifier, CalibratedNetwork) and classifier.conversion.mirrored:
        raise ConfigurationError(
            f"backbone_weights has mirrored={list(classifier.conversion.mirrored)}: a detector's branches see "
            "no mirror images; give weights of a network without"
        )
    # timm's feature extractors join the first two levels of a name, features.0 becomes features_0; or hold a model.
    given = {_joined(name): tensor for name, tensor in classifier.state_dict().items()}
    weights = {name: given.get(_joined(name.removeprefix("model."))) for name in backbone.body.state_dict()}
    unfit = [name for name, own in backbone.body.state_dict().items() if not _fits(own, weights[name], name)]
    if unfit:
        raise ConfigurationError(
            f"{len(unfit)} of {len(weights)} tensors of the backbone are missing in backbone_weights or of another "
            f"shape there: {', '.join(unfit[:3])}...; give weights of the same network"
        )
    optional = {name: tensor for name, tensor in weights.items() if tensor is not None}
    backbone.body.load_state_dict(optional, strict=len(optional) == len(weights))


def _fits(own: Tensor, given: Tensor | None, name: str) -> bool:
    if given is None:  # R of a plain network is 1 at every position
        return name.endswith(".calibration") and own.shape[0] == 1
    return own.shape == given.shape


def _joined(name: str) -> str:
    return name.replace(".", "_")
