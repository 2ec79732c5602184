"""What each network of the zoo costs, counted without allocating it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ccnn_zoo.convert import fold_


@dataclass(frozen=True)
class ZooRow:
    """One network of the zoo with its default arguments.

    Args:
        name: timm name.
        branches: number K of branches.
        trained_parameters: parameters before folding: w, R, batch normalisation and classifier.
        folded_parameters: parameters after folding, effective kernels in place of w and R.
        macs: multiply-accumulate operations of convolutions and linear layers for one image, folded.
        input_size: (C, H, W) of one image.
        checkpoints: tags of the trained weights that ``pretrained=True`` finds, e.g. ``("digits",)``.
    """

    name: str
    branches: int
    trained_parameters: int
    folded_parameters: int
    macs: int
    input_size: tuple[int, int, int]
    checkpoints: tuple[str, ...]


def table(pattern: str = "*") -> list[ZooRow]:
    """Return one row per network of the zoo whose name matches ``pattern``, in natural order.

    Args:
        pattern: shell pattern of names, e.g. ``"*cifar*"``.
    """
    return [_row(name) for name in timm.list_models("ccnn*") if fnmatchcase(name, pattern)]


def _row(name: str) -> ZooRow:
    model = timm.create_model(name, device="meta").eval()
    trained = _parameters(model)
    fold_(model)
    input_size = tuple(model.pretrained_cfg["input_size"])
    return ZooRow(
        name=name,
        branches=model.branches,
        trained_parameters=trained,
        folded_parameters=_parameters(model),
        macs=_macs(model, input_size),
        input_size=input_size,
        checkpoints=tuple(tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{name}.*")),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2  # it counts multiplications and additions
