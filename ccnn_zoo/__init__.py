"""Calibrated CNNs for timm: train with CSGD, fold into plain convolutions, run as ONNX anywhere.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.

Importing this package imports neither torch nor timm; its public names resolve on first use. As soon as timm
is imported, before or after, the networks (``ccnn_*``) and the optimizer (``csgd``) join timm's registries.
"""

import sys as _sys

import lazy_loader as _lazy

_resolve, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # it reads e-mail headers, and costs as much as all else here

        return version("ccnn-zoo")
    return _resolve(name)


def _join_timm_registries(timm: object) -> None:
    from . import models, optim  # noqa: F401, the networks register as they are imported

    optim.register_with_timm()


class _UntilTimm:
    """A finder that leaves the work to wrapt's hooks as soon as timm is looked for: wrapt imports asyncio."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != "timm" or self not in _sys.meta_path:
            return None
        from importlib.util import find_spec

        from wrapt import when_imported

        when_imported("timm")(_join_timm_registries)
        _sys.meta_path.remove(self)
        return find_spec(name)


if "timm" in _sys.modules:
    _join_timm_registries(_sys.modules["timm"])
else:
    _sys.meta_path.insert(0, _UntilTimm())
