"""What turns a timm network class into its calibrated one."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from ccnn_zoo.convert import calibrate_, fold_
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchLinear


class CalibratedClassifier:
    """Mixin that calibrates a timm classifier as soon as it is built: ``class X(CalibratedClassifier, ResNet)``.

    Args:
        branches: number K of branches; 1 is the plain network.
        merge: how branches meet before the classifier: ``"mean"``, ``"max"`` or ``"concat"``.
        mixing: which features a branch reads: its own (``"grouped"``) or those of all branches (``"dense"``).
        folded: build the plain form with grouped convolutions, which loads the weights of a folded network.
        args, kwargs: as in the plain class, widths counted for one branch.

    Raises:
        ConfigurationError: ``branches``, ``merge`` or ``mixing`` is out of range.
    """

    def __init__(
        self,
        *args: Any,
        branches: int = 2,
        merge: str = "mean",
        mixing: str = "grouped",
        folded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.branches = branches
        self.merge = merge
        self.mixing = mixing
        # As the paper trains from scratch: R random, w at the plain network's scale.
        calibrate_(self, branches, merge, mixing=mixing, diversity=1.0, rescale=False)
        self._tell_branches()
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
        self._tell_branches()

    def forward_branches(self, x: Tensor) -> Tensor:
        """Return the logits that each branch alone gives, for ensemble-style uncertainty.

        With ``merge="mean"`` their mean over the branches is what the network returns.

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

    def _tell_branches(self) -> None:
        """Tell layers without parameters, where the order of channels matters, how many branches there are."""
        for module in list(self.modules()):
            if isinstance(module, BranchAware):
                module.branches = self.branches
            elif isinstance(module, SelectAdaptivePool2d) and _is_part_major(module):
                module.pool = nn.Sequential(module.pool, BranchMajor(module.feat_mult(), self.branches))


def _is_part_major(pool: SelectAdaptivePool2d) -> bool:
    return pool.feat_mult() > 1 and not isinstance(pool.pool, nn.Sequential)


class BranchAware(nn.Module):
    """Layer without parameters that treats every branch alike, and needs to know their number: ``branches``."""

    branches = 1


class BranchMajor(BranchAware):
    """Reorder concatenated statistics so that those of one branch stand together.

    timm's ``catavgmax`` pooling gives the averages of all branches, then the maxima of all.

    Args:
        parts: number P of concatenated statistics.
        branches: number K of branches.

    Shape:
        - Input: (N, P * K * C, ...), part-major
        - Output: (N, K * P * C, ...), branch-major
    """

    def __init__(self, parts: int, branches: int) -> None:
        super().__init__()
        self.parts = parts
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack(x.chunk(self.parts, dim=1), dim=1)
        by_branch = torch.stack(parts.chunk(self.branches, dim=2), dim=1)
        return by_branch.flatten(1, 3)

    def extra_repr(self) -> str:
        return f"parts={self.parts}, branches={self.branches}"
