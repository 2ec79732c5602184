"""What each branch sees of an image: the image itself, or its mirror image.

The mean over an image and its mirror image makes fewer errors than the image alone (Krizhevsky et al., NeurIPS 2012,
section 4.1; Simonyan and Zisserman, ICLR 2015, section 3.2). As two branches of one network it needs no second weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccnn_zoo._base.checks import is_integer
from ccnn_zoo.errors import ConfigurationError


def check_mirrored(mirrored: Sequence[int], branches: int) -> tuple[int, ...]:
    """Return the numbers of the branches that see the mirror image, in order.

    Raises:
        ConfigurationError: they are no sequence of different branches from 0 to ``branches`` - 1.
    """
    numbers = list(mirrored) if isinstance(mirrored, list | tuple | range) else None
    if numbers is None or not all(map(is_integer, numbers)) or len(set(numbers)) < len(numbers):
        raise ConfigurationError(
            f"mirrored must be a list of different numbers of branches, as Python integers, got {mirrored!r}"
        )
    if not set(numbers) <= set(range(branches)):
        raise ConfigurationError(
            f"mirrored={mirrored!r} names a branch that is not there: with branches={branches} they are "
            f"{', '.join(map(str, range(branches)))}"
        )
    return tuple(sorted(numbers))


def branch_views(images: Tensor, mirrored: list[bool]) -> Tensor:
    """Return what every branch sees, side by side.

    Args:
        images: (N, C, H, W).
        mirrored: for each of the K branches, whether it sees left and right exchanged.

    Returns:
        Tensor (N, K * C, H, W), branch-major.
    """
    mirror_images = images.flip(-1)
    return torch.cat([mirror_images if it else images for it in mirrored], dim=1)


class MirroringConv2d(nn.Conv2d):
    """Folded convolution that reads an image of which some branches see the mirror image.

    Args:
        args, kwargs: as of ``nn.Conv2d``, for the views of all branches side by side: K * C channels.
        mirrored: for each of the K branches, whether it sees left and right exchanged.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, K * C_out, H_out, W_out), branch-major
    """

    def __init__(self, *args: Any, mirrored: Sequence[bool], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mirrored = list(mirrored)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        # Not super().forward: TorchScript knows no super.
        return self._conv_forward(branch_views(input, self.mirrored), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mirrored={self.mirrored}"
