"""Calibrated CNNs for timm: train with CSGD, fold into plain convolutions, run as ONNX anywhere.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.

Importing this package imports neither torch nor timm; its public names resolve on first use. As soon as timm
is imported, before or after, the networks (``ccnn_*``) and the optimizer (``csgd``) join timm's registries.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy
from wrapt import when_imported as _when_imported

__version__ = _version("ccnn-zoo")
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


@_when_imported("timm")
def _join_timm_registries(timm: object) -> None:
    from . import models, optim  # noqa: F401, the networks register as they are imported

    optim.register_with_timm()
