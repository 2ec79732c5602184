"""What turns a timm network class into its calibrated one."""

from __future__ import annotations

from typing import Any

from timm.models import register_notrace_module
from torch import nn

from ccnn_zoo._arguments import check_ranges
from ccnn_zoo._conversion.apply import apply
from ccnn_zoo._conversion.known_blocks import qualified_name
from ccnn_zoo._conversion.network import CalibratedClassifier
from ccnn_zoo._conversion.options import FROM_SCRATCH, ConversionOptions, take_options
from ccnn_zoo._conversion.selfcheck import checked
from ccnn_zoo._conversion.survey import Survey, survey
from ccnn_zoo.convert import fold_
from ccnn_zoo.layers import BranchLinear, CalibratedConv2d, MirroringConv2d

# Leaves of timm's graphs, as the nn.Conv2d and nn.Linear that they are. In parts they would be five nodes each, and
# torchvision's tracer takes time quadratic in the nodes: minutes for ResNet-1202.
register_notrace_module(CalibratedConv2d)
register_notrace_module(BranchLinear)
register_notrace_module(MirroringConv2d)


_KNOWN = frozenset(
    {
        "ccnn_zoo.models._small_resnet.PadShortcut",
        "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d",
        "timm.layers.classifier.ClassifierHead",
        "timm.layers.norm_act.BatchNormAct2d",
        "timm.models.resnet.BasicBlock",
        "timm.models.resnet.Bottleneck",
        "timm.models.resnetv2.DownsampleConv",
        "timm.models.resnetv2.PreActBasic",
        "timm.models.resnetv2.ResNetStage",
        "timm.models.vgg.ConvMlp",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.dropout.Dropout",
        "torch.nn.modules.flatten.Flatten",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.pooling.AdaptiveAvgPool2d",
        "torch.nn.modules.pooling.AvgPool2d",
        "torch.nn.modules.pooling.MaxPool2d",
    }
)
"""Modules of the zoo's networks as they are by default, which the tests check; what arguments bring in is not known."""
_checked: set[str] = set()


def _check_once(found: Survey, model: nn.Module, options: ConversionOptions, arguments: object) -> None:
    """Check a network with modules that are not known, as ``calibrate`` does; once per class and arguments."""
    key = repr((type(model), options, arguments))
    if key in _checked or all(qualified_name(module) in _KNOWN for module in model.modules() if module is not model):
        return
    checked(found, model, options)
    _checked.add(key)


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
        CalibrationError: an argument brings in a layer in which branches would mix, e.g. some kinds of attention.
    """

    def __init__(self, *args: Any, branches: int = 2, folded: bool = False, **kwargs: Any) -> None:
        # timm hands the arguments of a repository's config.json ("hf-hub:") to the network as they are.
        check_ranges({"branches": branches, **kwargs})
        options = ConversionOptions(branches=branches, **{**FROM_SCRATCH, **take_options(kwargs)})
        super().__init__(*args, **kwargs)
        found = survey(self, options)
        _check_once(found, self, options, (args, sorted(kwargs.items())))
        apply(found, self, options)
        if folded:
            fold_(self)
