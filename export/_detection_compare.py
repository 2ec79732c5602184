"""Does an exported detector find what the network finds? Measured on onnxruntime's CPU provider, in eval mode.

A detection of the file belongs to one of torch if both have the same label and their boxes differ by no more than
:data:`BOX_TOLERANCE` at every side. What has no partner is forgiven only where torch itself is undecided: if the
network's input changes by :data:`NUDGE`, a hundredth of what a photograph's last bit is worth, and its scores by
:data:`SCORE_NUDGE`, the detection must come or go in torch too. That happens where a score lies at the threshold, at
the number of detections that are kept, where the last bits of two scores decide which of two overlapping boxes stays,
or where two boxes overlap just so much that one of them is dropped: boxes of different kinds are moved apart before
they are suppressed, by up to kinds times 1000 pixels, which costs their coordinates the last of 24 bits. Torchvision
does so too, but for more than 1000 boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from ccnn_zoo.errors import ExportError

from ._detection_graph import BOXES, LABELS, SCORES
from ._graph import INPUT
from ._session import ORT_ERRORS, session_of

BOX_TOLERANCE = 0.5
"""Allowed difference of each side of a box, in pixels of the given picture."""

SCORE_TOLERANCE = 1e-3
"""Allowed difference of a score, which lies in [0, 1]."""

NUDGE = 1e-4
"""Standard deviation of the noise by which a normalised picture and its padding are changed to find ties."""

SCORE_NUDGE = 1e-6
"""Standard deviation of the noise on scores: where a network is sure, a score of 1 less rounding, its input moves none,
and the last bit, 6e-8, decides which of two overlapping boxes stays."""

_NUDGES = 32


@dataclass(frozen=True)
class PictureDifference:
    """What differs on one picture between onnxruntime and torch.

    Args:
        height: of the picture, in pixels.
        width: likewise.
        detections: that torch found.
        box: largest difference of a box's side in pixels.
        score: largest difference of a score.
        ties: detections that only one of both has, because torch itself is undecided.
    """

    height: int
    width: int
    detections: int
    box: float
    score: float
    ties: int


@dataclass(frozen=True)
class _Found:
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


def compare_detections(detector: FasterRCNN, path: Path, pictures: Sequence[Tensor]) -> list[PictureDifference]:
    """Run network and file on the same pictures.

    Args:
        detector: the unfolded network, in eval mode on the CPU.
        path: the file exported from it.
        pictures: float32 (3, H, W) in [0, 1].

    Raises:
        ExportError: the file finds something else than the network, or neither finds anything, so that nothing was
            compared.
    """
    session = session_of(path)
    differences = [_compare_one(detector, session, picture, n) for n, picture in enumerate(pictures)]
    if not sum(difference.detections for difference in differences):
        raise ExportError(
            f"the detector finds nothing on any of {len(pictures)} pictures, so the file could not be compared. Pass "
            "images that show what it was trained to find (on the command line --data)."
        )
    return differences


def _compare_one(
    detector: FasterRCNN, session: ort.InferenceSession, picture: Tensor, number: int
) -> PictureDifference:
    where = f"picture {number} ({picture.shape[1]} x {picture.shape[2]})"
    theirs, ours = _in_torch(detector, picture), _in_onnxruntime(session, picture, where)
    pairs = _partners(ours, theirs)
    lonely = (sorted(set(range(len(ours.labels))) - {i for i, _ in pairs}),)
    lonely = (*lonely, sorted(set(range(len(theirs.labels))) - {j for _, j in pairs}))
    if any(lonely):
        _check_ties(detector, picture, ours, theirs, lonely, where)
    boxes = [float(np.abs(ours.boxes[i] - theirs.boxes[j]).max()) for i, j in pairs]
    scores = [float(np.abs(ours.scores[i] - theirs.scores[j])) for i, j in pairs]
    if not all(score <= SCORE_TOLERANCE for score in scores):
        raise ExportError(
            f"on {where} a score of the exported graph differs from the network's by {max(scores):.3g}; "
            f"{SCORE_TOLERANCE} is allowed"
        )
    return PictureDifference(
        height=picture.shape[1],
        width=picture.shape[2],
        detections=len(theirs.labels),
        box=max(boxes, default=0.0),
        score=max(scores, default=0.0),
        ties=sum(map(len, lonely)),
    )


@torch.no_grad()
def _in_torch(detector: FasterRCNN, picture: Tensor) -> _Found:
    found = detector([picture])[0]
    return _Found(*(found[name].numpy() for name in (BOXES, LABELS, SCORES)))


def _in_onnxruntime(session: ort.InferenceSession, picture: Tensor, where: str) -> _Found:
    try:
        outputs = session.run([BOXES, LABELS, SCORES], {INPUT: picture[None].numpy()})
    except ORT_ERRORS as error:
        raise ExportError(f"the exported graph fails on {where}: {error}") from error
    return _Found(*outputs)


def _partners(ours: _Found, theirs: _Found) -> list[tuple[int, int]]:
    """Return pairs of the same detection; the closest are paired first, and none twice."""
    if not len(ours.labels) or not len(theirs.labels):
        return []
    distance = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(-1)
    near = (ours.labels[:, None] == theirs.labels[None]) & (distance <= BOX_TOLERANCE)
    pairs: list[tuple[int, int]] = []
    for i, j in sorted(zip(*map(np.ndarray.tolist, near.nonzero()), strict=True), key=lambda pair: distance[pair]):
        if all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return pairs


def _check_ties(
    detector: FasterRCNN,
    picture: Tensor,
    ours: _Found,
    theirs: _Found,
    lonely: tuple[list[int], list[int]],
    where: str,
) -> None:
    """Refuse detections without a partner, except where torch itself is undecided."""
    generator = torch.Generator().manual_seed(0)
    extra, missing = set(lonely[0]), set(lonely[1])

    def nudge(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + NUDGE * torch.randn(inputs[0].shape, generator=generator),)

    def nudge_scores(_: nn.Module, __: object, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits, boxes = outputs
        scores = logits.softmax(-1) + SCORE_NUDGE * torch.randn(logits.shape, generator=generator)
        return scores.clamp(min=1e-12).log(), boxes

    predictor = detector.roi_heads.box_predictor
    with detector.backbone.register_forward_pre_hook(nudge), predictor.register_forward_hook(nudge_scores):
        for _ in range(_NUDGES):
            if not extra and not missing:
                break
            nudged = _in_torch(detector, picture)
            extra -= {i for i, _ in _partners(ours, nudged)}
            missing &= {i for i, _ in _partners(theirs, nudged)}
    for found, those, who, other in ((ours, extra, "exported graph", "network"), (theirs, missing, "network", "graph")):
        if those:
            first = min(those)
            raise ExportError(
                f"on {where} the {who} finds {len(those)} objects that the {other} does not find within "
                f"{BOX_TOLERANCE} pixels, first one of label {found.labels[first]} with score "
                f"{found.scores[first]:.3f} at {found.boxes[first].round(1).tolist()}"
            )
