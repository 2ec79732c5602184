"""Calibrated CNNs for timm: train with CSGD, fold into plain convolutions, run as ONNX anywhere.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.

Importing this package imports neither torch nor timm; its public names resolve on first use. As soon as timm
is imported, before or after, the networks (``ccnn_*``) and the optimizer (``csgd``) join timm's registries.
"""

import sys as _sys

from ._base.missing import MissingPackages as _MissingPackages

# Public names and the modules that hold them; `__init__.pyi` tells type checkers the same.
_HOMES = {
    "CSGD": "optim",
    "BranchLinear": "layers",
    "CalibratedConv2d": "layers",
    "Split": "convert",
    "calibrate": "convert",
    "deep_ensemble": "convert",
    "fold": "convert",
    "split": "convert",
}
_MODULES = (
    *("analysis", "checkpoint", "detection", "errors", "export", "hub", "metadata", "models", "runtime", "serve"),
    *("train", "uncertainty"),
)

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from ._base.version import version

        return version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = getattr(home, name) if name in _HOMES else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


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
_sys.meta_path.append(_MissingPackages())
