"""Classes made on the fly: a mixin before the class that an object has, so that the object can do more.

Copying and pickling find such a class again by its two parts.
"""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any

from torch import nn


class Mixin:
    """Base of the mixins that :func:`mix_in` takes."""

    def __reduce_ex__(self, protocol: int) -> Any:
        reduced = super().__reduce_ex__(protocol)
        parts = vars(type(self)).get("_mixed_of")
        if parts is None or reduced[0] is not copyreg.__newobj__:  # a class with a name, or one that pickles itself
            return reduced
        return (_new, parts, *reduced[2:])


def mix_in(module: nn.Module, mixin: type[Mixin], prefix: str) -> None:
    """Give ``module`` what ``mixin`` has, unless it has it already; its class is then called by ``prefix`` too."""
    if not isinstance(module, mixin):
        module.__class__ = _mixed(mixin, type(module), prefix)


def unmix(module: nn.Module) -> bool:
    """Give ``module`` the class back that it had before :func:`mix_in`; tell whether there was one."""
    parts = vars(type(module)).get("_mixed_of")
    if parts is not None:
        module.__class__ = parts[1]
    return parts is not None


@cache
def _mixed(mixin: type[Mixin], plain: type[nn.Module], prefix: str) -> type[nn.Module]:
    members = {
        "__doc__": mixin.__doc__,
        "__module__": plain.__module__,
        "_mixed_of": (mixin, plain, prefix),
        "plain_forward": plain.forward,  # TorchScript knows no super
    }
    return type(f"{prefix}{plain.__name__.lstrip('_')}", (mixin, plain), members)


def _new(mixin: type[Mixin], plain: type[nn.Module], prefix: str) -> nn.Module:
    kind = _mixed(mixin, plain, prefix)
    return kind.__new__(kind)
