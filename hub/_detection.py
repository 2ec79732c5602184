"""Detectors on the Hub: what :class:`ccnn_zoo.hub._parts.Part` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnn_zoo.errors import ConfigurationError

from ._card_detector import detector_card_of as card

if TYPE_CHECKING:
    from ._parts import Staging

__all__ = ["card", "owns", "stage"]


def owns(network: object) -> bool:
    from torchvision.models.detection import FasterRCNN

    return isinstance(network, FasterRCNN)


def stage(staging: Staging, folder: Path) -> dict[str, Any]:
    from ._stage_detector import stage_detector

    if staging.networks or staging.int8_images is not None or staging.held_out is not None:
        raise ConfigurationError(
            "detectors are published in fp32 only, without numbers of confidence: leave fp16, int8, int8_images and "
            "held_out out"
        )
    return stage_detector(staging.source, folder, staging.record, staging.images)
