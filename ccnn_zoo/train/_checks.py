"""Checks of single values of a recipe."""

from __future__ import annotations

from numbers import Real

from timm.data import create_transform

from ccnn_zoo.errors import ConfigurationError


def require_integer(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def require_number(
    name: str, value: object, low: float, high: float, *, above: bool = False, below: bool = False
) -> None:
    """Refuse what is no number from ``low`` to ``high``; ``above`` and ``below`` leave the ends out."""
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
        raise ConfigurationError(f"{name} must be a number, got {value!r}{hint}")
    inside = low <= value <= high and value != float("inf")
    if not inside or (above and value == low) or (below and value == high):
        interval = f"{'(' if above else '['}{low}, {high}{')' if below or high == float('inf') else ']'}"
        raise ConfigurationError(f"{name} must be in {interval}, got {value!r}")


def check_auto_augment(policy: object) -> None:
    """Refuse what timm does not know as a policy of augmentation."""
    try:
        if not policy:  # to timm it means none
            raise ValueError("empty")
        create_transform(32, is_training=True, auto_augment=policy)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"auto_augment must be a policy of timm, such as 'rand-m9-mstd0.5', got {policy!r} ({error})"
        ) from error
