"""Networks that are one sequence of layers, with taps: what AlexNet, NIN and VGG share."""

from __future__ import annotations

import torch
from timm.models import checkpoint_seq
from timm.models.vgg import VGG
from torch import Tensor, nn

from ccnn_zoo._base.compat import feature_take_indices


class TappedFeatures:
    """Mixin for networks whose ``features`` are one ``nn.Sequential``, and ``feature_ends`` the indices of its taps.

    The layer after a tap must not work in place: a checkpoint begins there.
    """

    forward = VGG.forward
    forward_intermediates = VGG.forward_intermediates

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the unpooled features, (N, K * C, H, W)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self._sections(), x)
        return self.features(x)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the features at the taps for the backward pass, and compute the others again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def _sections(self) -> list[nn.Sequential]:
        starts = [0, *(end + 1 for end in self.feature_ends[:-1])]
        return [self.features[start : end + 1] for start, end in zip(starts, self.feature_ends, strict=True)]


class CutAtTaps(TappedFeatures):
    """The same for networks that are not timm's, which brings its own way to cut them."""

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut the layers after the last tap of ``indices``, as timm's feature extractors ask."""
        taken, last = feature_take_indices(len(self.feature_ends), indices)
        self.features = self.features[: self.feature_ends[last] + 1]
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or max(taken) < len(self.feature_ends) - 1:
            self.reset_classifier(0, "")
        return taken
