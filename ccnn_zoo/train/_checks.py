"""Checks of what timm is given."""

from __future__ import annotations

from timm.data import create_transform

from ccnn_zoo.errors import ConfigurationError


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
