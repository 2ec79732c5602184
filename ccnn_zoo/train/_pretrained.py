"""Networks of earlier runs: the weights that training starts from, and the teacher that it learns from."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.convert import CalibratedNetwork, calibrate
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.models import FINE_TUNED

CHECKPOINT = "last.safetensors"
"""What a training folder calls the network after its last epoch."""


def load_start(model: nn.Module, source: str, diversity: float = FINE_TUNED["diversity"]) -> None:
    """Copy the weights of a checkpoint into ``model``; a classifier of other classes keeps its own.

    Args:
        model: of the same architecture, and of the same branches unless the checkpoint's has one.
        source: a checkpoint, a training folder, or the timm name of a network with trained weights.
        diversity: how far R starts from uniform, where a network of one branch is calibrated.

    Raises:
        RepositoryError: there is no such checkpoint.
        IntegrityError: it is damaged.
        ConfigurationError: it holds another network; names the first tensor that does not fit.
    """
    trained = _trained(source, model.in_chans)
    if is_plain(trained) and not is_plain(model):
        trained = calibrate(trained, **{**model.conversion.architecture(), "diversity": diversity})
    seen = [list(each.conversion.mirrored) if isinstance(each, CalibratedNetwork) else [] for each in (model, trained)]
    if seen[0] != seen[1]:
        raise ConfigurationError(
            f"start_from={source!r} has mirrored={seen[1]}, the recipe's network mirrored={seen[0]}; give it the same "
            "in model_kwargs"
        )
    own, given = model.state_dict(), trained.state_dict()
    if model.pretrained_cfg.get("label_names") != trained.pretrained_cfg.get("label_names"):
        head = f"{model.pretrained_cfg['classifier']}."
        given |= {name: tensor for name, tensor in own.items() if name.startswith(head)}
    unfit = own.keys() ^ given.keys()
    unfit |= {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    if unfit:
        raise ConfigurationError(
            f"start_from={source!r} is another network than {model.pretrained_cfg['architecture']} as the recipe has "
            f"it: {min(unfit)} and {len(unfit) - 1} more tensors differ. Give its model, branches and model_kwargs."
        )
    model.load_state_dict(given)


def is_plain(model: nn.Module) -> bool:
    """Whether a network has one branch: a plain one, or one of ours with K=1."""
    return not isinstance(model, CalibratedNetwork) or model.conversion.branches == 1


def load_teacher(source: str, labels: tuple[str, ...], input_size: tuple[int, int, int]) -> nn.Module:
    """Return the network of a checkpoint, frozen and in eval mode, for a student that sees the same images.

    Args:
        source: a checkpoint or a training folder.
        labels: the student's classes.
        input_size: (C, H, W) of the student's images.

    Raises:
        RepositoryError: there is no such checkpoint.
        IntegrityError: it is damaged.
        ConfigurationError: it knows other classes, or images of other channels.
    """
    teacher = _trained(source)
    cfg = teacher.pretrained_cfg
    if tuple(cfg.get("label_names") or ()) != labels:
        raise ConfigurationError(f"teacher={source!r} has other classes ({teacher.num_classes}) than the data's")
    if cfg["input_size"][0] != input_size[0]:
        raise ConfigurationError(
            f"teacher={source!r} reads images of {cfg['input_size'][0]} channels, not {input_size[0]}"
        )
    return teacher.requires_grad_(False)


def _trained(source: str, in_chans: int | None = None) -> nn.Module:
    path = Path(source).expanduser()
    if not path.exists() and timm.is_model(source):
        try:
            return timm.create_model(source, pretrained=True, in_chans=in_chans)
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"{source} is no file, and timm cannot get trained weights of that name: {error}"
            ) from error
    return load_checkpoint(path / CHECKPOINT if path.is_dir() else path)[0]
