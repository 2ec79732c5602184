"""``detector_to_onnx``: fold, translate, check on pictures, and only then put the file in its place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from ccnn_zoo._base.checks import check_integer
from ccnn_zoo._base.wrapped import unwrapped, usual_settings
from ccnn_zoo._files import replacing
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError, MetadataError, RepositoryError
from ccnn_zoo.metadata import DetectorMetadata

from ._detection_checks import check_detector_file, convolutions_of
from ._detection_compare import PictureDifference, compare_detections
from ._detection_graph import convert_detector
from ._graph import DEFAULT_OPSET


@dataclass(frozen=True)
class DetectionReport:
    """What was exported, and what its check measured.

    Args:
        path: the file.
        nodes: nodes of the graph by operator.
        parameters: floating-point weights in the file.
        pictures: what differs on each picture that was compared.
        file_size: bytes.
        opset: version of ONNX's operators.
    """

    path: Path
    nodes: dict[str, int]
    parameters: int
    pictures: tuple[PictureDifference, ...]
    file_size: int
    opset: int

    @property
    def detections(self) -> int:
        """Number of detections of torch that were compared."""
        return sum(picture.detections for picture in self.pictures)

    @property
    def max_box_difference(self) -> float:
        """Largest difference of a box's side, in pixels of the picture."""
        return max(picture.box for picture in self.pictures)

    @property
    def max_score_difference(self) -> float:
        """Largest difference of a score."""
        return max(picture.score for picture in self.pictures)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        totals = {name: getattr(self, name) for name in ("detections", "max_box_difference", "max_score_difference")}
        return {**asdict(self), "path": str(self.path), **totals}


@usual_settings()
def detector_to_onnx(
    detector: FasterRCNN,
    path: str | os.PathLike[str],
    *,
    images: Iterable[Tensor] | None = None,
    labels: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> DetectionReport:
    """Export a detector as one ONNX file that needs nothing else, and check it before it is put in its place.

    R and batch normalisation are folded into plain convolutions. The file maps ``image``, float32 (1, 3, height,
    width) of any size with RGB values in [0, 1], to ``boxes`` (n, 4), (x1, y1, x2, y2) in pixels of that image,
    ``labels`` (n,), counted from 1, and ``scores`` (n,), the highest first. Resizing, normalisation, proposals and
    non-maximum suppression are in the graph; it has neither loops nor branches.

    Every time, the file is run beside the network before folding, on seeded pictures of three sizes and on all
    ``images``: the same labels, boxes within :data:`BOX_TOLERANCE` pixels, scores within :data:`SCORE_TOLERANCE`.

    Args:
        detector: made by :func:`ccnn_zoo.detection.create_detector`, in either mode, on any device. It is left
            untouched.
        path: the file; an older one is replaced only by one that passed.
        images: pictures to compare on too, best real ones: float tensors (3, H, W) in [0, 1] of any sizes.
        labels: names of the kinds of objects, for a detector that was made without.
        opset: version of ONNX's operators, 18 or later.

    Raises:
        ExportError: the network cannot be translated, or the file fails its check; nothing is left behind. Also where
            no object is found on any picture, since then nothing was compared.
        MetadataError: the names of the labels are missing or contradict the detector.
        ConfigurationError: the detector was not made by ``create_detector``, or ``images`` or ``opset`` is malformed.
        RepositoryError: the file cannot be written.
    """
    path = Path(path)
    check_integer("opset", opset, DEFAULT_OPSET)
    if path.is_dir():
        raise RepositoryError(f"{path} is a folder. Pass a file name, e.g. {path / 'detector.onnx'}.")
    detector = unwrapped(detector)
    metadata = detector_metadata_of(detector, labels)
    pictures = [*_seeded_pictures(metadata), *_checked_pictures(images)]
    network = deepcopy(detector).to("cpu", torch.float32).eval()
    with torch.random.fork_rng(devices=[]), replacing(path) as temporary:
        convolutions = convolutions_of(network, pictures[0])  # and finds the strides of the levels, for the graph
        onnx.save(convert_detector(fold(network), metadata, opset), temporary)
        graph = check_detector_file(temporary, network, metadata, opset, convolutions)
        differences = compare_detections(network, temporary, pictures)
        size = temporary.stat().st_size
    return DetectionReport(path, graph.nodes, graph.parameters, tuple(differences), size, graph.opset)


def detector_metadata_of(detector: FasterRCNN, labels: Sequence[str] | None = None) -> DetectorMetadata:
    """Return what the file of a detector carries.

    Raises:
        ConfigurationError: it was not made by ``create_detector``.
        MetadataError: the names of the labels are missing or contradict it.
    """
    config = getattr(detector, "config", None)
    if not isinstance(detector, FasterRCNN) or not isinstance(config, dict):
        raise ConfigurationError(
            f"{type(detector).__name__} is no detector that ccnn_zoo.detection.create_detector made; make it so"
        )
    own = config["labels"]
    if own and labels is not None and list(own) != list(labels):
        raise MetadataError("labels differ from those that the detector was made with. Leave labels out.")
    named = own or labels
    if not named or len(named) != config["num_classes"]:
        raise MetadataError(
            f"the detector has {config['num_classes']} kinds of objects and {len(named or ())} names of them. Pass "
            "labels=[...], one for each, the first for label 1."
        )
    transform = detector.transform
    return DetectorMetadata(
        architecture=config["backbone"],
        branches=config["branches"],
        labels=tuple(named),
        min_size=transform.min_size[-1],
        max_size=transform.max_size,
    )


def _checked_pictures(images: Iterable[Tensor] | None) -> Iterable[Tensor]:
    for number, image in enumerate(images or ()):
        fits = isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3 and image.shape[0] == 3
        if not fits or not image.numel() or not 0 <= image.min() <= image.max() <= 1:
            found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ConfigurationError(
                f"images must be float tensors (3, H, W) with values in [0, 1], image {number} is {found}"
            )
        yield image.detach().to("cpu", torch.float32)


def _seeded_pictures(metadata: DetectorMetadata) -> list[Tensor]:
    """Return pictures of three shapes with coloured rectangles on noise; none has the size that the network uses."""
    generator = torch.Generator().manual_seed(0)
    side, pictures = metadata.min_size, []
    for height, width in ((side * 5 // 6, side * 7 // 6), (side * 4 // 3, side), (side // 2, side * 3 // 2)):
        picture = 0.3 * torch.rand(3, max(height, 1), max(width, 1), generator=generator)
        for _ in range(6):
            top, left, tall, wide = torch.rand(4, generator=generator).tolist()
            rows = slice(int(top * 0.8 * height), int((top * 0.8 + 0.05 + tall * 0.3) * height) + 1)
            columns = slice(int(left * 0.8 * width), int((left * 0.8 + 0.05 + wide * 0.3) * width) + 1)
            picture[:, rows, columns] = torch.rand(3, 1, 1, generator=generator)
        pictures.append(picture)
    return pictures
