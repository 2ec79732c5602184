"""The calibrated convolution and the classifier that lets its branches meet.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Eq. 1-4.
Features are branch-major: channel ``k * C + c`` is channel c of branch k.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnn_zoo._roles import CALIBRATION, SHARED_WEIGHT, set_role
from ccnn_zoo.errors import ConfigurationError

MERGES = ("mean", "max", "concat")


def check_branches(branches: int) -> int:
    """Return ``branches``, the number K of branches.

    Raises:
        ConfigurationError: it is not an integer of at least 1.
    """
    if isinstance(branches, bool) or not isinstance(branches, int) or branches < 1:
        raise ConfigurationError(
            f"branches must be an integer of at least 1 (1 is the plain network), got {branches!r}"
        )
    return branches


def check_merge(merge: str) -> str:
    """Return ``merge``, the way in which branches meet before the classifier.

    Raises:
        ConfigurationError: it is not one of :data:`MERGES`.
    """
    if merge not in MERGES:
        raise ConfigurationError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
    return merge


class CalibratedConv2d(nn.Conv2d):
    r"""2D convolution of K branches that share one weight (GClayer of the paper, Eq. 3-4).

    Branch k convolves its own copy of the features with the effective kernel :math:`H_k = R_k * w`, an
    element-wise product over the kernel's positions. That is one grouped convolution. Like timm's ``StdConv2d``
    it **is** an ``nn.Conv2d``: ``in_channels``, ``out_channels``, ``groups``, ``weight`` and ``bias`` are those
    of one branch, so the weights of a plain network load under their own keys; ``calibration`` is the one new key.

    Train it with :class:`ccnn_zoo.CSGD`, which keeps R non-negative and normalised; any other optimizer would
    treat R as a free weight.

    Args:
        in_channels: channels that one branch reads.
        out_channels: channels that one branch writes.
        kernel_size, stride, padding, dilation: as in ``nn.Conv2d``.
        groups: groups within one branch, as in the plain network.
        bias: add a bias, shared by the branches as w is.
        branches: number K of branches.
        shared_input: all branches read the same ``in_channels`` channels; for the first layer, which sees the
            image once.

    Shape:
        - Input: (N, K * in_channels, H, W), or (N, in_channels, H, W) with ``shared_input=True``
        - Output: (N, K * out_channels, H_out, W_out), sizes as in ``nn.Conv2d``
        - ``weight`` (w): (out_channels, in_channels / groups, kh, kw)
        - ``calibration`` (R): (K, kh, kw); non-negative, sums to 1 over the branches at every position

    Raises:
        ConfigurationError: ``branches`` is below 1, or ``shared_input`` meets ``groups`` above 1 (groups of a
            shared input would not come out branch-major).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        branches: int = 2,
        shared_input: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_branches(branches)
        if shared_input and groups > 1 and branches > 1:
            raise ConfigurationError(f"shared_input=True needs groups=1, got groups={groups}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.branches = branches
        self.shared_input = shared_input
        self.total_groups = groups if shared_input else branches * groups
        self.calibration = nn.Parameter(torch.empty(branches, *self.kernel_size, device=device, dtype=dtype))
        self.reset_calibration()
        self._mark_parameters()

    @torch.no_grad()
    def reset_calibration(self, diversity: float = 1.0) -> None:
        """Draw R anew: ``diversity`` times uniform random in (0, 1), the rest equal, normalised over branches.

        Args:
            diversity: 1 is the paper's initialisation; 0 gives R_k = 1/K, which leaves all branches identical
                for ever, since their gradients are identical too.

        Raises:
            ConfigurationError: ``diversity`` is outside [0, 1].
        """
        if not 0 <= diversity <= 1:
            raise ConfigurationError(f"diversity must be between 0 and 1, got {diversity!r}")
        self.calibration.uniform_(torch.finfo(self.calibration.dtype).tiny, 1)  # 0 / 0 would be NaN for K=1
        self.calibration.div_(self.calibration.sum(0))
        self.calibration.lerp_(torch.full_like(self.calibration, 1 / self.branches), 1 - diversity)

    def adopt_parameters(self, weight: nn.Parameter, calibration: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Make these the layer's own parameters, shapes as in the class docstring, without a copy."""
        self.weight, self.calibration, self.bias = weight, calibration, bias
        self._mark_parameters()

    def _mark_parameters(self) -> None:
        set_role(self.weight, SHARED_WEIGHT)
        set_role(self.calibration, CALIBRATION)

    # Copying, moving between devices and loading can each make new Parameter objects, without the marks.
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> CalibratedConv2d:
        super()._apply(fn, recurse)
        self._mark_parameters()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._mark_parameters()

    def effective_weight(self) -> Tensor:
        """Return H, the kernels that the branches really use: (K * out_channels, in_channels / groups, kh, kw)."""
        kernels = self.calibration[:, None, None] * self.weight
        return kernels.flatten(0, 1)

    def effective_bias(self) -> Tensor | None:
        """Return the bias of all branches, (K * out_channels,), or None."""
        bias = self.bias  # TorchScript narrows the type of a local name only
        return None if bias is None else bias.repeat(self.branches)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        return F.conv2d(
            input,
            self.effective_weight(),
            self.effective_bias(),
            self.stride,
            self.padding,
            self.dilation,
            self.total_groups,
        )

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the plain convolution that computes the same function, R folded into its kernels.

        ``timm.utils.reparameterize_model`` folds a network by this method.
        """
        weight = self.effective_weight()
        conv = nn.Conv2d(
            self.in_channels if self.shared_input else self.branches * self.in_channels,
            self.branches * self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.total_groups,
            bias=self.bias is not None,
            device="meta",
        )
        conv.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.effective_bias(), requires_grad=self.bias.requires_grad)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        shared = ", shared_input=True" if self.shared_input else ""
        return f"{super().extra_repr()}, branches={self.branches}{shared}"


class BranchLinear(nn.Linear):
    """Linear classifier in which the branches meet.

    With ``merge="mean"`` its logits are the mean of the K logits that each branch alone would give.

    Args:
        in_features: features of one branch.
        out_features: classes.
        branches: number K of branches.
        merge: ``"mean"`` or ``"max"`` over the branches (``weight`` is that of the plain network), or
            ``"concat"`` (``weight`` reads all K * in_features).

    Shape:
        - Input: (N, ..., K * in_features), branch-major
        - Output: (N, ..., out_features)
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
        width = in_features * branches if merge == "concat" else in_features
        super().__init__(width, out_features, bias=bias, device=device, dtype=dtype)
        self.branches = check_branches(branches)
        self.merge = check_merge(merge)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Linear's own name
        return F.linear(self.merge_branches(input), self.weight, self.bias)

    def merge_branches(self, features: Tensor) -> Tensor:
        """Return what the linear map reads: (..., in_features), or unchanged with ``"concat"``."""
        if self.merge == "concat" or self.branches == 1:
            return features
        # chunk, not unflatten: it exports as Split, which needs no shape arithmetic in the graph.
        stacked = torch.stack(features.chunk(self.branches, dim=-1))
        return stacked.mean(0) if self.merge == "mean" else stacked.amax(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, branches={self.branches}, merge={self.merge!r}"
