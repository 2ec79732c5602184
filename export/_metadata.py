"""Reading from a timm network what its exported file must carry."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from ccnn_zoo._base.wrapped import unwrapped
from ccnn_zoo.convert import timm_name
from ccnn_zoo.errors import MetadataError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d
from ccnn_zoo.metadata import ModelMetadata, in_order

_IMAGENET_CLASSES = 1000


def metadata_of(model: nn.Module, labels: Sequence[str] | None = None) -> ModelMetadata:
    """Return labels and preprocessing of a network, as timm keeps them in ``model.pretrained_cfg``.

    Args:
        model: a classifier made by ``timm.create_model``: plain, calibrated or folded.
        labels: one name per class, in the order of the logits, for a network whose
            ``pretrained_cfg["label_names"]`` names none, or those of a classifier that was replaced since by one of
            another size. Without either a network of 1000 classes gets ImageNet's, and others are numbered, with a
            warning; so are those whose classifier is new (``reset_classifier`` of a calibrated network).

    Raises:
        MetadataError: something is missing or contradicts something else; names it and the remedy.
    """
    model = unwrapped(model)
    config = getattr(model, "pretrained_cfg", None)
    if not config or not config.get("architecture"):
        raise MetadataError(
            f"{type(model).__name__} has no pretrained_cfg with an architecture, so its preprocessing is unknown. "
            "Make it with timm.create_model, or set model.pretrained_cfg as timm does."
        )
    data = resolve_model_data_config(model)
    _check_channels(model, data["input_size"][0])
    return ModelMetadata(
        architecture=timm_name(model),
        branches=_branches_of(model),
        labels=_labels_of(model, labels),
        input_size=tuple(data["input_size"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
    )


def _branches_of(model: nn.Module) -> int:
    """Return K; a folded network still has it in its classifier, a plain one is K=1."""
    found = {m.branches for m in model.modules() if isinstance(m, CalibratedConv2d | BranchLinear | BranchConv2d)}
    if len(found) > 1:
        raise MetadataError(f"the layers of {type(model).__name__} have different numbers of branches: {sorted(found)}")
    return found.pop() if found else getattr(model, "branches", 1)


def _labels_of(model: nn.Module, given: Sequence[str] | None) -> tuple[str, ...]:
    classes = _classes_of(model)
    recorded = model.pretrained_cfg.get("label_names")
    own = in_order(recorded or ())
    if len(own) != classes:  # of a classifier that was replaced since
        own = ()
    if own and given is not None and tuple(own) != tuple(given):
        raise MetadataError(
            'labels differ from model.pretrained_cfg["label_names"], by which the network was trained. Leave labels '
            "out, or change the pretrained_cfg if its names are wrong."
        )
    labels = own or given
    if labels is None and recorded is None and classes == _IMAGENET_CLASSES:
        labels = ImageNetInfo().label_descriptions()
    if labels is None:
        labels = _numbered(model, classes, len(recorded or ()))
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise MetadataError(f"labels must be a sequence of strings, got {labels!r}")
    if len(labels) != classes:
        raise MetadataError(f"{len(labels)} labels for {classes} classes. Pass one per logit, in their order.")
    return tuple(labels)


def _numbered(model: nn.Module, classes: int, stale: int) -> list[str]:
    replaced = f" (its {stale} label_names are those of an earlier classifier)" if stale else ""
    # From one place: Python then says the same thing once.
    warnings.warn(
        f"the names of the {classes} classes of {timm_name(model)} are unknown{replaced}, so they are called class 0 "
        f'to class {classes - 1}. Pass labels=[...], one per logit, or set model.pretrained_cfg["label_names"].',
        stacklevel=2,
    )
    return [f"class {number}" for number in range(classes)]


def _classes_of(model: nn.Module) -> int:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    classes = getattr(model, "num_classes", linears[-1].out_features if linears else 0)
    if classes < 1:
        raise MetadataError(
            f"{type(model).__name__} is no classifier: num_classes is {classes}. "
            "Give it one by model.reset_classifier(num_classes) and train it."
        )
    return classes


def _check_channels(model: nn.Module, channels: int) -> None:
    """Compare the image's channels with those the network was made for: ``in_chans=1`` leaves timm's config behind."""
    own = getattr(model, "in_chans", channels)
    if own != channels:
        raise MetadataError(
            f"the network reads images of {own} channels, its pretrained_cfg says {channels}. Set input_size, mean and "
            "std in model.pretrained_cfg to those of the training data, e.g. "
            f'"input_size": ({own}, height, width).'
        )
