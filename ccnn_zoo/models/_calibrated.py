"""What turns a timm network class into its calibrated one."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import register_notrace_module
from torch import Tensor, nn

from ccnn_zoo._arguments import check_ranges
from ccnn_zoo.convert import calibrate_, fold_
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchLinear, CalibratedConv2d

# Leaves of timm's graphs, as the nn.Conv2d and nn.Linear that they are. In parts they would be five nodes each, and
# torchvision's tracer takes time quadratic in the nodes: minutes for ResNet-1202.
register_notrace_module(CalibratedConv2d)
register_notrace_module(BranchLinear)


class CalibratedClassifier:
    """Mixin that calibrates a timm classifier as soon as it is built: ``class X(CalibratedClassifier, ResNet)``.

    Args:
        branches: number K of branches; 1 is the plain network.
        merge: how branches meet: ``"mean"``, ``"max"`` or ``"concat"`` before the classifier; or behind one of their
            own each: ``"probability"``, the logarithm of the mean of their probabilities.
        mixing: which features a branch reads: its own (``"grouped"``) or those of all branches (``"dense"``).
        folded: build the plain form with grouped convolutions, which loads the weights of a folded network.
        diversity: how far the first R is from equal R_k, in [0, 1]: 1 is the paper's random R; 0 leaves all branches
            identical for ever.
        rescale: start with w K times larger, so that H_k has the scale of a plain network's w. Networks without
            batch normalisation always do.
        args, kwargs: as in the plain class, widths counted for one branch.

    Raises:
        ConfigurationError: ``branches``, ``merge``, ``mixing`` or ``diversity`` is out of range.
    """

    def __init__(
        self,
        *args: Any,
        branches: int = 2,
        merge: str = "mean",
        mixing: str = "grouped",
        folded: bool = False,
        diversity: float = 1.0,
        rescale: bool = False,
        **kwargs: Any,
    ) -> None:
        # timm hands the arguments of a repository's config.json ("hf-hub:") to the network as they are.
        check_ranges({"branches": branches, **kwargs})
        super().__init__(*args, **kwargs)
        self.branches = branches
        self.merge = merge
        self.mixing = mixing
        # The defaults are how the paper trains from scratch: R random, w at the plain network's scale.
        calibrate_(self, branches, merge, mixing=mixing, diversity=diversity, rescale=rescale)
        self._order_pooled_channels()
        if folded:
            fold_(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of R: probabilities, which no optimizer should decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.endswith(".calibration")}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; as in timm, and branches meet in the new one."""
        super().reset_classifier(num_classes, global_pool)
        classifier = self.get_classifier()
        # Branches that met in an earlier layer (AlexNet's first linear one) stay met.
        if type(classifier) is nn.Linear and self._meeting_layer() is None:
            merged = BranchLinear(
                classifier.in_features // self.branches,  # timm sized it for all K * C features
                num_classes,
                branches=self.branches,
                merge=self.merge,
                device=classifier.weight.device,
                dtype=classifier.weight.dtype,
            )
            name = next(name for name, module in self.named_modules() if module is classifier)
            self.set_submodule(name, merged.train(self.training))
        self._order_pooled_channels()

    def forward_branches(self, x: Tensor) -> Tensor:
        """Return the logits that each branch alone gives, for ensemble-style uncertainty.

        With ``merge="mean"`` their mean over the branches is what the network returns, with ``"probability"`` the
        logarithm of their mean probability.

        Args:
            x: images, (N, C, H, W).

        Returns:
            Tensor (K, N, classes).

        Raises:
            ConfigurationError: the network has no classifier (``num_classes=0``).
        """
        return self._branch_classifier().forward_branches(self.forward_head(self.forward_features(x), pre_logits=True))

    def _branch_classifier(self) -> BranchLinear:
        layer = self._meeting_layer()
        if layer is None:
            raise ConfigurationError(
                f"num_classes={self.num_classes}: without a classifier there are no logits of branches; "
                "call reset_classifier first"
            )
        return layer

    def _meeting_layer(self) -> BranchLinear | None:
        return next((module for module in self.modules() if isinstance(module, BranchLinear)), None)

    def _order_pooled_channels(self) -> None:
        """Let a pooling that concatenates statistics (timm's ``catavgmax``) do so branch by branch."""
        head = getattr(self, "head", None)
        pooled = self.num_features if head is None else head.in_features
        for pool in [module for module in self.modules() if isinstance(module, SelectAdaptivePool2d)]:
            if pool.feat_mult() > 1 and not isinstance(pool.pool, nn.Sequential):
                pool.pool = nn.Sequential(pool.pool, BranchMajor(pool.feat_mult(), pooled // self.branches))


class BranchMajor(nn.Module):
    """Reorder concatenated statistics so that those of one branch stand together.

    timm's ``catavgmax`` pooling gives the averages of all branches, then the maxima of all.

    Args:
        parts: number P of concatenated statistics.
        channels: channels C of one branch.

    Shape:
        - Input: (N, P * K * C, ...), part-major, for any K
        - Output: (N, K * P * C, ...), branch-major
    """

    def __init__(self, parts: int, channels: int) -> None:
        super().__init__()
        self.parts = parts
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        branches = x.shape[1] // (self.parts * self.channels)
        parts = torch.stack(x.chunk(self.parts, dim=1), dim=1)
        by_branch = torch.stack(parts.chunk(branches, dim=2), dim=1)
        return by_branch.flatten(1, 3)

    def extra_repr(self) -> str:
        return f"parts={self.parts}, channels={self.channels}"
