"""Checkpoints of detectors: one safetensors file, as :mod:`ccnn_zoo.checkpoint` writes them for classifiers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from torchvision.models.detection import FasterRCNN

from ccnn_zoo._base.wrapped import unwrapped
from ccnn_zoo._files.sealed import read_sealed, write_sealed
from ccnn_zoo._rebuild import filled, parsed
from ccnn_zoo.checkpoint import TrainingRecord, read_record
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

from ._detector import checked_config, create_detector, detector_config


def save_detector(path: str | os.PathLike[str], detector: FasterRCNN, record: TrainingRecord) -> None:
    """Write a detector and how it was trained to one safetensors file, atomically.

    Raises:
        ConfigurationError: it was not made by :func:`create_detector`, or is a wrapper of such a one.
        RepositoryError: the folder cannot be written; what was there before is left untouched.
    """
    detector = unwrapped(detector)
    texts = {"detector": json.dumps(detector_config(detector)), "record": json.dumps(asdict(record))}
    write_sealed(path, detector.state_dict(), texts)


def load_detector(path: str | os.PathLike[str]) -> tuple[FasterRCNN, TrainingRecord]:
    """Rebuild the detector of a checkpoint, in eval mode, with its record.

    Raises:
        RepositoryError: there is no such file.
        IntegrityError: it is no checkpoint of a detector, is truncated, or differs from its sum.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise RepositoryError(f"no checkpoint at {path}; `ccnn train --recipe voc07_detection` writes one")
    weights, texts = read_sealed(path, ("detector", "record"), "a checkpoint of a detector")
    try:
        arguments = checked_config(parsed(texts["detector"], "its configuration"))
        detector = filled(lambda: create_detector(**arguments), weights)
        record = read_record(texts["record"])
    except ConfigurationError as error:
        raise IntegrityError(f"{path} holds a detector or record that this version does not know ({error})") from error
    return detector.eval(), record
