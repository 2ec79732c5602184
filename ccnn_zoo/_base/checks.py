"""Checks of single arguments, where they enter.

By hand: importing pydantic takes an eighth of the time in which `ccnn classify` starts (docs/decisions.md).
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from contextlib import suppress
from numbers import Real
from typing import TypeVar

from ccnn_zoo.errors import ConfigurationError

Choice = TypeVar("Choice")


def is_integer(value: object, least: int | None = None) -> bool:
    """Whether ``value`` is an ``int``, True and False excepted, of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def check_integer(name: str, value: object, least: int = 1, note: str = "", *, numpys: bool = False) -> int:
    """Return ``value`` as an integer of at least ``least``; True will not do, numpy's only where nothing keeps them.

    Raises:
        ConfigurationError: it is none; names the argument, with ``note`` behind the bound.
    """
    number = value
    if numpys and not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if not is_integer(number, least):
        raise ConfigurationError(f"{name} must be an integer of at least {least}{note}, got {value!r}")
    return number


def check_number(
    name: str, value: object, low: float, high: float, *, above: bool = False, below: bool = False
) -> float:
    """Return ``value``, a number from ``low`` to ``high``; ``above`` and ``below`` leave the ends out.

    Raises:
        ConfigurationError: it is none; names the argument and the interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
        raise ConfigurationError(f"{name} must be a number, got {value!r}{hint}")
    inside = low <= value <= high and value != float("inf")
    if not inside or (above and value == low) or (below and value == high):
        interval = f"{'(' if above else '['}{low}, {high}{')' if below or high == float('inf') else ']'}"
        raise ConfigurationError(f"{name} must be in {interval}, got {value!r}")
    return value


def check_choice(name: str, value: Choice, allowed: Collection[Choice]) -> Choice:
    """Return ``value``, one of those that are ``allowed``.

    Raises:
        ConfigurationError: it is none of them; names the argument and them.
    """
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
    return value
