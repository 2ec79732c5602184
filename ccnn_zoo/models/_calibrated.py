"""What turns a timm network class into its calibrated one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ccnn_zoo.convert import calibrate_, fold_
from ccnn_zoo.layers import BranchLinear


class CalibratedClassifier:
    """Mixin that calibrates a timm classifier as soon as it is built: ``class X(CalibratedClassifier, ResNet)``.

    Args:
        branches: number K of branches; 1 is the plain network.
        merge: how branches meet before the classifier: ``"mean"``, ``"max"`` or ``"concat"``.
        folded: build the plain form with grouped convolutions, which loads the weights of a folded network.
        args, kwargs: as in the plain class, widths counted for one branch.

    Raises:
        ConfigurationError: ``branches`` or ``merge`` is out of range.
    """

    def __init__(self, *args: Any, branches: int = 2, merge: str = "mean", folded: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.branches = branches
        self.merge = merge
        # As the paper trains from scratch: R random, w at the plain network's scale.
        calibrate_(self, branches, merge, diversity=1.0, rescale=False)
        if folded:
            fold_(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of R: probabilities, which no optimizer should decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.endswith(".calibration")}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; as in timm, and branches meet in the new one."""
        super().reset_classifier(num_classes, global_pool)
        name = self.get_classifier(name_only=True)
        classifier = self.get_submodule(name)
        if type(classifier) is nn.Linear:
            self.set_submodule(
                name,
                BranchLinear(
                    classifier.in_features // self.branches,  # timm sized it for all K * C features
                    num_classes,
                    branches=self.branches,
                    merge=self.merge,
                    device=classifier.weight.device,
                    dtype=classifier.weight.dtype,
                ),
            )
