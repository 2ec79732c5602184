"""Classifiers on the Hub: what :class:`ccnn_zoo.hub._parts.Part` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._card import card_of as card

if TYPE_CHECKING:
    from ._parts import Staging

__all__ = ["card", "owns", "stage"]


def owns(network: object) -> bool:
    return True  # what is no network of timm's is refused by name


def stage(staging: Staging, folder: Path) -> dict[str, Any]:
    from ._stage import stage_network

    return stage_network(
        staging.source,
        folder,
        staging.record,
        staging.images,
        staging.exported,
        staging.int8_images,
        staging.held_out,
    )
