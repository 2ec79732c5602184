"""The calibrated convolution.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Eq. 1-4.
Features are branch-major: channel ``k * C + c`` is channel c of branch k.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnn_zoo._base.roles import CALIBRATION, SHARED_WEIGHT, set_role
from ccnn_zoo.errors import ConfigurationError

from ._branches import check_branches, check_diversity, check_mixing
from ._views import MirroringConv2d, branch_views, check_mirrored


class CalibratedConv2d(nn.Conv2d):
    """2D convolution of K branches that share one weight (GClayer of the paper, Eq. 3-4).

    Branch k convolves its own copy of the features with the effective kernel ``H_k = R_k * w``, an
    element-wise product over the kernel's positions. That is one grouped convolution. Like timm's ``StdConv2d``
    it **is** an ``nn.Conv2d``: ``in_channels``, ``out_channels``, ``groups``, ``weight`` and ``bias`` are those
    of one branch, so the weights of a plain network load under their own keys; ``calibration`` is the one new key.

    With ``mixing="dense"`` every branch reads the features of all K branches, each through its own slice of w. Eq. 4
    speaks of its own features only, but Table 2's parameter counts fit this reading.

    Train it with :class:`ccnn_zoo.optim.CSGD`, which keeps R non-negative and normalised; any other optimizer would
    treat R as a free weight.

    Args:
        in_channels: channels that one branch reads.
        out_channels: channels that one branch writes.
        kernel_size, stride, padding, dilation: as in ``nn.Conv2d``.
        groups: groups within one branch, as in the plain network.
        bias: add a bias, shared by the branches as w is.
        branches: number K of branches.
        shared_input: all branches read the same ``in_channels`` channels; for the first layer, which sees the
            image once. Both mixings are the same here.
        mixing: ``"grouped"``, a branch reads its own features, or ``"dense"``, it reads those of all branches.
        mirrored: numbers of the branches that see a shared input mirrored, left and right exchanged.

    Shape:
        - Input: (N, K * in_channels, H, W), or (N, in_channels, H, W) with ``shared_input=True``
        - Output: (N, K * out_channels, H_out, W_out), sizes as in ``nn.Conv2d``
        - ``weight`` (w): (out_channels, in_channels / groups, kh, kw); with ``mixing="dense"`` and without
          ``shared_input`` (out_channels, K * in_channels, kh, kw)
        - ``calibration`` (R): (K, kh, kw); non-negative, sums to 1 over the branches at every position

    Raises:
        ConfigurationError: ``branches`` is below 1, ``mixing`` is unknown, ``shared_input`` or dense mixing meets
            ``groups`` above 1 (their groups would not come out branch-major), or ``mirrored`` names no branches or
            comes without ``shared_input``.
    """

    parameter_roles = {"weight": SHARED_WEIGHT, "calibration": CALIBRATION}  # noqa: RUF012, never changed

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
        mixing: str = "grouped",
        mirrored: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_branches(branches)
        check_mixing(mixing)
        if shared_input and groups > 1 and branches > 1:
            raise ConfigurationError(f"shared_input=True needs groups=1, got groups={groups}")
        if mixing == "dense" and groups > 1 and branches > 1:
            raise ConfigurationError(
                f"mixing='dense' needs groups=1, got groups={groups}; leave layers with groups at mixing='grouped', as "
                "calibrate does"
            )
        if check_mirrored(mirrored, branches) and not shared_input:
            raise ConfigurationError(f"mirrored={mirrored!r} is for the layer that reads the image: shared_input=True")
        reads_all = mixing == "dense" and not shared_input
        super().__init__(
            branches * in_channels if reads_all else in_channels,
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
        self.in_channels = in_channels
        self.shared_input = shared_input
        self.mixing = mixing
        self.have_branches([k in mirrored for k in range(branches)])
        self.calibration = nn.Parameter(torch.empty(branches, *self.kernel_size, device=device, dtype=dtype))
        self.reset_calibration()

    def have_branches(self, mirrored: Sequence[bool]) -> None:
        """Count as many branches as ``mirrored`` has values from now on, which say of each whether it sees the mirror
        image; R and features must be of as many."""
        self.branches = len(mirrored)
        self.mirrored = list(mirrored)
        one = not any(mirrored) if self.shared_input else self.mixing == "dense"
        self.total_groups = self.groups if one else self.branches * self.groups

    @torch.no_grad()
    def reset_calibration(self, diversity: float = 1.0) -> None:
        """Draw R anew: ``diversity`` times uniform random in (0, 1), the rest equal, normalised over branches.

        Args:
            diversity: 1 is the paper's initialisation; 0 gives R_k = 1/K, which leaves all branches identical
                for ever, since their gradients are identical too.

        Raises:
            ConfigurationError: ``diversity`` is outside [0, 1].
        """
        check_diversity(diversity)
        if diversity == 0:
            self.calibration.fill_(1 / self.branches)
            return
        self.calibration.uniform_(torch.finfo(self.calibration.dtype).tiny, 1)  # 0 / 0 would be NaN for K=1
        self.calibration.div_(self.calibration.sum(0))
        self.calibration.lerp_(torch.full_like(self.calibration, 1 / self.branches), 1 - diversity)

    def adopt_parameters(self, weight: nn.Parameter, calibration: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Make these the layer's own parameters, shapes as in the class docstring, without a copy."""
        self.weight, self.calibration, self.bias = weight, calibration, bias

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``; also what an assignment calls. The new parameter has the role of the old one."""
        super().register_parameter(name, param)
        if param is not None and name in self.parameter_roles:
            set_role(param, self.parameter_roles[name])

    def __setattr__(self, name: str, value: Any) -> None:
        # Overridden so that FSDP2 comes this way: into layers with nn.Module's own it writes parameters past it.
        super().__setattr__(name, value)

    def _mark_parameters(self) -> None:
        for name, role in self.parameter_roles.items():
            set_role(getattr(self, name), role)

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
        """Return H, the kernels that the branches really use: (K * out_channels, ...), else shaped as ``weight``."""
        return (self.calibration[:, None, None] * self.weight).flatten(0, 1)

    def effective_bias(self) -> Tensor | None:
        """Return the bias of all branches, (K * out_channels,), or None."""
        bias = self.bias  # TorchScript narrows the type of a local name only
        return None if bias is None else bias.repeat(self.branches)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        return self._convolved(self._seen(input))

    def _seen(self, images: Tensor) -> Tensor:
        return branch_views(images, self.mirrored) if any(self.mirrored) else images

    def _convolved(self, images: Tensor) -> Tensor:
        return F.conv2d(
            images,
            self.effective_weight(),
            self.effective_bias(),
            self.stride,
            self.padding,
            self.dilation,
            self.total_groups,
        )

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the plain convolution that computes the same function, R folded into its kernels; where branches see
        the mirror image, a :class:`MirroringConv2d`.

        ``timm.utils.reparameterize_model`` folds a network by this method.
        """
        weight = self.effective_weight()
        mirrors = any(self.mirrored)
        kind = partial(MirroringConv2d, mirrored=self.mirrored) if mirrors else nn.Conv2d
        conv = kind(
            self.in_channels if self.shared_input and not mirrors else self.branches * self.in_channels,
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
        mixing = "" if self.mixing == "grouped" else f", mixing={self.mixing!r}"
        mirrored = f", mirrored={self.mirrored}" if any(self.mirrored) else ""
        return f"{super().extra_repr()}, branches={self.branches}{shared}{mixing}{mirrored}"
