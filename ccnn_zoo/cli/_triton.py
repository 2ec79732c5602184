"""``ccnn export --triton``: how Triton shall run the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError

if TYPE_CHECKING:
    from ccnn_zoo.serve import TritonOptions


def triton_options(settings: Iterable[str]) -> TritonOptions:
    """Return options from ``NAME=VALUE`` settings, values in YAML.

    Raises:
        ConfigurationError: a setting is no such pair, or its name or value is refused; names it.
    """
    import yaml

    from ccnn_zoo.serve import TritonOptions

    known = [field.name for field in fields(TritonOptions)]
    values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ConfigurationError(f"--triton-set takes NAME=VALUE with NAME one of {', '.join(known)}, got {text!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--triton-set {name} takes a value in YAML, got {value!r}") from error
    return TritonOptions(**values)
