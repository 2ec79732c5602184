"""Where branches meet: the classifier that merges them, and the concatenation that keeps them apart.

Features are branch-major: channel ``k * C + c`` is channel c of branch k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnn_zoo._base.checks import check_choice, check_integer, check_number

FEATURE_MERGES = ("mean", "max", "concat")
"""How features of branches meet."""
MERGES = (*FEATURE_MERGES, "probability")
"""How branches meet before or, with ``"probability"``, behind the classifier."""
MIXINGS = ("grouped", "dense")
"""Which features a branch reads: its own, or those of all branches."""


def check_branches(branches: int) -> int:
    """Return ``branches``, the number K of branches.

    Raises:
        ConfigurationError: it is not an integer of at least 1.
    """
    return check_integer("branches", branches, note=" (1 is the plain network)")


def check_merge(merge: str, allowed: Sequence[str] = MERGES) -> str:
    """Return ``merge``, the way in which branches meet.

    Raises:
        ConfigurationError: it is not one of those that are ``allowed``.
    """
    return check_choice("merge", merge, allowed)


def check_mixing(mixing: str) -> str:
    """Return ``mixing``, which features a branch reads.

    Raises:
        ConfigurationError: it is not one of :data:`MIXINGS`.
    """
    return check_choice("mixing", mixing, MIXINGS)


def check_diversity(diversity: float) -> float:
    """Return ``diversity``, how far R starts from uniform.

    Raises:
        ConfigurationError: it is no number in [0, 1].
    """
    return check_number("diversity", diversity, 0, 1)


def concat_branches(tensors: Sequence[Tensor], branches: int) -> Tensor:
    """Concatenate along the channels, each tensor and the result branch-major.

    ``torch.cat`` of branch-major tensors would not be: it gives all branches of the first tensor, then all of the
    second.

    Args:
        tensors: features, (N, K * C_i, ...).
        branches: number K of branches.

    Returns:
        Tensor (N, K * sum C_i, ...).
    """
    parts = [tensor.chunk(branches, dim=1) for tensor in tensors]
    return torch.cat([part for branch in zip(*parts, strict=True) for part in branch], dim=1)


def merge_features(features: Tensor, branches: int, merge: str, dim: int) -> Tensor:
    """Return the mean or maximum over the branches that stand side by side in ``dim``, or all with ``"concat"``."""
    if merge == "concat" or branches == 1:
        return features
    # chunk, not unflatten: it exports as Split, which needs no shape arithmetic in the graph.
    stacked = torch.stack(features.chunk(branches, dim=dim))
    return stacked.mean(0) if merge == "mean" else stacked.amax(0)


def log_mean_probability(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean of the branches' probabilities: softmax of it gives that mean again.

    Args:
        logits: of every branch alone, (K, N, ..., classes).

    Returns:
        Tensor (N, ..., classes), natural logarithms.
    """
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


class BranchLinear(nn.Linear):
    """Linear classifier in which the branches meet.

    With ``merge="mean"`` its logits are the mean of the K logits that each branch alone would give. With
    ``merge="probability"`` every branch has a classifier of its own, and the logits are the logarithm of the mean of
    the branches' probabilities, so that softmax and cross-entropy of them are the ensemble's. One branch alone is a
    plain linear layer with each of them.

    Args:
        in_features: features of one branch.
        out_features: classes.
        branches: number K of branches.
        merge: ``"mean"`` or ``"max"`` over the branches (``weight`` is that of the plain network), ``"concat"``
            (``weight`` reads all K * in_features), or ``"probability"``.

    Shape:
        - Input: (N, ..., K * in_features), branch-major
        - Output: (N, ..., out_features)
        - ``weight``: (out_features, in_features); (out_features, K * in_features) with ``"concat"``;
          (K * out_features, in_features), branch-major, with ``"probability"``, where ``bias`` is (K * out_features,)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        branches: int = 2,
        merge: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_branches(branches)
        check_merge(merge)
        width = in_features * branches if merge == "concat" else in_features
        rows = out_features * branches if merge == "probability" else out_features
        super().__init__(width, rows, bias=bias, device=device, dtype=dtype)
        self.out_features = out_features
        self.branches = branches
        self.merge = merge

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Linear's own name
        if self.merge == "probability" and self.branches > 1:
            return log_mean_probability(self.forward_branches(input))
        # Not super().forward: TorchScript knows no super.
        return F.linear(self.merge_branches(input), self.weight, self.bias)

    def merge_branches(self, features: Tensor) -> Tensor:
        """Return what the linear map reads: (..., in_features), or unchanged with ``"concat"``."""
        return merge_features(features, self.branches, self.merge, dim=-1)

    def forward_branches(self, features: Tensor) -> Tensor:
        """Return what each branch alone says.

        With ``"mean"``, ``"max"`` and ``"probability"`` that is what the layer gives for the features of one branch.
        With ``"concat"`` it is K times what one branch adds to the sum of all, bias included. So for ``"mean"`` and
        ``"concat"`` the mean over the branches is :meth:`forward`, for ``"probability"`` it is
        :func:`log_mean_probability` of them; for ``"max"``, where the features are merged by a maximum, no
        combination of the logits of single branches is.

        Args:
            features: (N, ..., K * C), branch-major.

        Returns:
            Tensor (K, N, ..., out_features).
        """
        parts = features.chunk(self.branches, dim=-1)
        if self.merge == "mean" or self.merge == "max":  # TorchScript, which knows no `in`, reads this
            return F.linear(torch.stack(parts), self.weight, self.bias)
        own = self.merge == "probability"
        weights = (self.weight if own else self.branches * self.weight).chunk(self.branches, dim=0 if own else 1)
        logits: list[Tensor] = []
        for k in range(self.branches):
            bias = self.bias
            if bias is not None and own:
                bias = bias.chunk(self.branches)[k]
            logits.append(F.linear(parts[k], weights[k], bias))
        return torch.stack(logits)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, branches={self.branches}, merge={self.merge!r}"


class BranchConv2d(nn.Conv2d):
    """1x1 convolution to the classes in which the branches meet: :class:`BranchLinear` for unflattened features.

    Args:
        in_channels: channels of one branch.
        out_channels: classes.
        kernel_size, stride, padding, bias: as in ``nn.Conv2d``.
        branches: number K of branches.
        merge: as in :class:`BranchLinear`, but for ``"probability"``: pooling comes behind this layer, and the mean of
            the probabilities of single places is not what is wanted.

    Shape:
        - Input: (N, K * in_channels, H, W), branch-major
        - Output: (N, out_channels, H_out, W_out)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        bias: bool = True,
        branches: int = 2,
        merge: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_branches(branches)
        check_merge(merge, FEATURE_MERGES)
        width = in_channels * branches if merge == "concat" else in_channels
        super().__init__(width, out_channels, kernel_size, stride, padding, bias=bias, device=device, dtype=dtype)
        self.branches = branches
        self.merge = merge

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        # Not super().forward: TorchScript knows no super.
        return self._conv_forward(merge_features(input, self.branches, self.merge, dim=1), self.weight, self.bias)

    def forward_branches(self, features: Tensor) -> Tensor:
        """Return what each branch alone says, (K, N, out_channels, H, W); see :class:`BranchLinear`."""
        parts = features.movedim(1, -1).chunk(self.branches, dim=-1)
        weights = [self.weight.flatten(1)] * self.branches
        if self.merge == "concat":
            weights = (self.branches * self.weight.flatten(1)).chunk(self.branches, dim=1)
        # As a linear map of every pixel: exporters want the weights of a convolution stored, not computed.
        logits = [F.linear(x, weight, self.bias) for x, weight in zip(parts, weights, strict=True)]
        return torch.stack(logits).movedim(-1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, branches={self.branches}, merge={self.merge!r}"
