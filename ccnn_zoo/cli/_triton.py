"""``ccnn export --triton``: how Triton shall run the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError

if TYPE_CHECKING:
    from ccnn_zoo.serve import TritonOptions


def triton_options(settings: Sequence[str], *, asked: bool) -> TritonOptions:
    """Return options from ``NAME=VALUE`` settings, values in YAML.

    Raises:
        ConfigurationError: settings stand without a repository, or one is no such pair, or is refused; names it.
    """
    from ccnn_zoo._files import parsed_yaml
    from ccnn_zoo.serve import TritonOptions

    if settings and not asked:
        raise ConfigurationError(f"--triton-set {settings[0]} needs --triton DIR")
    known = [field.name for field in fields(TritonOptions)]
    values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ConfigurationError(f"--triton-set takes NAME=VALUE with NAME one of {', '.join(known)}, got {text!r}")
        values[name] = parsed_yaml(value, f"--triton-set {text}")
    return TritonOptions(**values)
