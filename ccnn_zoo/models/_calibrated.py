"""What turns a timm network class into its calibrated one."""

from __future__ import annotations

from typing import Any

from timm.models import register_notrace_module

from ccnn_zoo._arguments import check_ranges
from ccnn_zoo._network import CalibratedClassifier
from ccnn_zoo._options import FROM_SCRATCH, take_options
from ccnn_zoo.convert import ConversionOptions, calibrate_, fold_
from ccnn_zoo.layers import BranchLinear, CalibratedConv2d

# Leaves of timm's graphs, as the nn.Conv2d and nn.Linear that they are. In parts they would be five nodes each, and
# torchvision's tracer takes time quadratic in the nodes: minutes for ResNet-1202.
register_notrace_module(CalibratedConv2d)
register_notrace_module(BranchLinear)


class ZooClassifier(CalibratedClassifier):
    """Mixin that calibrates a timm classifier as soon as it is built: ``class X(ZooClassifier, ResNet)``.

    Args:
        branches: number K of branches; 1 is the plain network.
        folded: build the plain form with grouped convolutions, which loads the weights of a folded network.
        args, kwargs: as in the plain class, widths counted for one branch; and the other fields of
            :class:`ccnn_zoo.convert.ConversionOptions`, by default as the paper trains from scratch: ``diversity=1.0``
            and ``rescale=False``.

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(self, *args: Any, branches: int = 2, folded: bool = False, **kwargs: Any) -> None:
        # timm hands the arguments of a repository's config.json ("hf-hub:") to the network as they are.
        check_ranges({"branches": branches, **kwargs})
        options = ConversionOptions(branches=branches, **{**FROM_SCRATCH, **take_options(kwargs)})
        super().__init__(*args, **kwargs)
        calibrate_(self, options)
        if folded:
            fold_(self)
