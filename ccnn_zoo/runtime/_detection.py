"""A loaded network that finds objects in images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccnn_zoo import pictures
from ccnn_zoo._base.checks import check_integer, check_number
from ccnn_zoo._files.folders import while_it_stays
from ccnn_zoo.errors import ConfigurationError, ImageError, IntegrityError, MetadataError
from ccnn_zoo.metadata import DetectorMetadata
from ccnn_zoo.pictures import ImageInput

from ._backend import Backend, OpenOptions, Session
from ._header import Header
from ._loading import locate, path_of, read_safely, reopening
from ._registry import check_device, open_session
from ._session import reopened
from ._stream import mapped

_OUTPUTS = ("boxes", "labels", "scores")
_AHEAD = 4  # pictures that are decoded before their turn


@dataclass(frozen=True)
class FoundObject:
    """One object in an image.

    Args:
        label: what it is.
        score: how sure the network is, in [0, 1]. There is no agreement of branches beside it: a detector's branches
            meet in its features, and one head reads what they make together.
        box: (x1, y1, x2, y2) in pixels of the upright image, x to the right and y down.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """The objects in one image, or why it could not be read.

    Args:
        source: path of the image, or ``"image 3"`` for the fourth input if that was held in memory.
        width: of the upright image, in pixels; 0 if it could not be read.
        height: likewise.
        objects: the surest first.
        error: names the image and what is wrong with it; None if it was read.
    """

    source: str
    width: int
    height: int
    objects: tuple[FoundObject, ...]
    error: str | None = None


class ObjectDetector:
    """A network with its labels; made by :func:`load_detector`. It holds no state between calls: threads may share it.

    Attributes:
        metadata: labels, backbone and sizes.
        source: name of the file.
        provider: what runs the network, e.g. ``"CPUExecutionProvider"``.
        device: the name of the backend's device, e.g. ``"cuda"`` or ``"cpu"``.
        reopened_by: opens it again; that is what a pickle of it holds, for other processes.
    """

    reopened_by: Callable[[], ObjectDetector] | None = None

    def __init__(self, session: Session, metadata: DetectorMetadata, source: str) -> None:
        self.metadata = metadata
        self.source = source
        self.provider = session.provider
        self.device = session.device
        self._session = session

    def __reduce__(self) -> tuple[Callable[[], ObjectDetector], tuple[()]]:
        return reopened(self)

    def __repr__(self) -> str:
        return (
            f"ObjectDetector({self.metadata.architecture!r}, branches={self.metadata.branches}, "
            f"{len(self.metadata.labels)} labels, {self.provider})"
        )

    def detect(self, images: ImageInput | Iterable[ImageInput], score: float = 0.5) -> list[Detection]:
        """Find the objects in one image or many.

        An image that cannot be read gives an entry with ``error``; the others are looked through all the same.

        Args:
            images: paths, PIL images, encoded pictures or uint8 arrays, as :meth:`ImageClassifier.classify` takes them.
            score: objects less sure than this are left out, in [0, 1]; the network's own limit is 0.05 by default.

        Returns:
            one entry per image, in the order of ``images``.

        Raises:
            ConfigurationError: ``score`` is out of range.
            ImageError: an input is none of these.
            DeviceError: the device fails while it runs, e.g. by lack of memory.
            IntegrityError: the network gives what no detector gives.
        """
        return list(self.detect_stream(images, score))

    def detect_stream(
        self, images: ImageInput | Iterable[ImageInput], score: float = 0.5, *, workers: int = 0
    ) -> Iterator[Detection]:
        """Find the objects in images one after another, as :meth:`detect` does; endless iterables are welcome.

        Args:
            images, score: as in :meth:`detect`.
            workers: threads that decode images ahead of the network; 0 decodes each when it is due.

        Raises:
            ConfigurationError: ``workers`` is out of range, and all that :meth:`detect` raises.
        """
        check_number("score", score, 0, 1)
        check_integer("workers", workers, least=0)
        return self._stream(pictures.iterate(images), float(score), workers)

    def predict(self, image: NDArray[np.float32]) -> dict[str, NDArray]:
        """Return the network's own outputs for one picture.

        Args:
            image: float32 (1, 3, H, W), RGB values in [0, 1].

        Returns:
            ``boxes`` float32 (n, 4) in pixels, ``labels`` int64 (n,) from 1, ``scores`` float32 (n,), the highest
            first.

        Raises:
            ConfigurationError: ``image`` has another type or shape, or values outside [0, 1].
            DeviceError: the device fails while it runs.
            IntegrityError: the outputs are not such.
        """
        fits = isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 4
        if not fits or image.shape[:2] != (1, 3) or not image.size:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ConfigurationError(f"predict takes a float32 array (1, 3, H, W), got {found}")
        if not (image.min() >= 0 and image.max() <= 1):  # also where it holds NaN
            raise ConfigurationError("predict takes values in [0, 1]: divide pixels by 255")
        return self._checked(self._session.run(np.ascontiguousarray(image)))

    def _stream(self, images: Iterator[ImageInput], score: float, workers: int) -> Iterator[Detection]:
        for image in mapped(_prepared, _numbered(images), workers, _AHEAD):
            if image.values is None:
                yield Detection(image.name, 0, 0, (), image.error)
                continue
            height, width = image.values.shape[2:]
            yield Detection(image.name, width, height, self._objects(self.predict(image.values), score))

    def _objects(self, found: dict[str, NDArray], score: float) -> tuple[FoundObject, ...]:
        rows = zip(found["labels"], found["scores"], found["boxes"], strict=True)
        return tuple(
            FoundObject(self.metadata.labels[label - 1], float(sure), tuple(map(float, box)))
            for label, sure, box in rows
            if sure >= score
        )

    def _checked(self, outputs: object) -> dict[str, NDArray]:
        boxes, labels, scores = (np.asarray(outputs[name]) for name in _OUTPUTS)
        count = len(scores) if scores.ndim == 1 else -1
        sound = boxes.shape == (count, 4) and labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer)
        sound = sound and np.isfinite(boxes).all() and np.isfinite(scores).all()
        if not sound or (count and not 1 <= labels.min() <= labels.max() <= len(self.metadata.labels)):
            raise IntegrityError(
                f"{self.source} gives boxes {boxes.shape}, labels {labels.shape} and scores {scores.shape} that are no "
                f"finite boxes of its {len(self.metadata.labels)} kinds of objects. Download or export it again."
            )
        return {"boxes": boxes, "labels": labels, "scores": scores}


def load_detector(
    path_or_repo_id: str | os.PathLike[str],
    *,
    device: str | Backend = "auto",
    revision: str | None = None,
    token: str | bool = False,
    threads: int | None = None,
) -> ObjectDetector:
    """Load an exported detector; :func:`ccnn_zoo.runtime.load` does the same for classifiers.

    Args:
        path_or_repo_id: an ``.onnx`` file, a repository or training folder, or a Hub id, as of :func:`load`.
        device: what runs it, as of :func:`load`; ``"auto"`` takes CUDA if it starts, else the CPU, all others are
            strict. On a GPU, sizes and indices are computed on the CPU, as onnxruntime finds best.
        revision: branch, tag or commit of a Hub repository.
        token: for private repositories, as of :func:`load`; by default none is sent.
        threads: CPU threads of one inference; None takes all cores.

    Raises:
        RepositoryError: the name is none of these, or the repository cannot be had.
        IntegrityError: the file differs from its checksum, or holds what is refused.
        MetadataError: the file is no detector of ours.
        DeviceError: the device was asked for and cannot run the network; names what is missing.
        ConfigurationError: an argument is outside its range.
    """
    if threads is not None:
        check_integer("threads", threads, numpys=True)
    check_device(device)

    def opened() -> ObjectDetector:
        path = locate(os.fspath(path_or_repo_id), revision, "fp32", token=token)
        content, header = read_safely(path)
        metadata = DetectorMetadata.from_props(header.properties, source=str(path))
        _check_graph(header, str(path))
        usual = (1, 3, metadata.min_size, min(metadata.min_size * 4 // 3, metadata.max_size))
        session = open_session(path, device, OpenOptions(usual, threads=threads, parts_on_cpu=True, content=content))
        detector = ObjectDetector(session, metadata, str(path))
        detector.reopened_by = reopening(load_detector, path, {"device": device, "threads": threads})
        return detector

    return while_it_stays(path_of(path_or_repo_id), opened)


def _check_graph(header: Header, source: str) -> None:
    takes = [(tensor.dtype, tensor.shape and tensor.shape[:2]) for tensor in header.inputs]
    gives = tuple(tensor.name for tensor in header.outputs)
    if takes != [("float32", (1, 3))] or gives != _OUTPUTS:
        raise MetadataError(
            f"{source} takes {takes} and gives {gives}, a detector takes one float32 (1, 3, height, width) and gives "
            f"{_OUTPUTS}. Export it again with `ccnn export`."
        )


class _Prepared(NamedTuple):
    name: str
    values: NDArray[np.float32] | None
    error: str | None = None


def _prepared(numbered: tuple[int, ImageInput]) -> _Prepared:
    """Decode one image; called in several threads at once."""
    position, image = numbered
    name = pictures.name_of(image, position)
    try:
        return _Prepared(name, _values(pictures.read(image, 3, name)))
    except ImageError as error:
        return _Prepared(name, None, str(error))
    except MemoryError:
        return _Prepared(name, None, f"{name} needs more memory than there is. Make it smaller.")


def _values(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(pixels, np.float32) / np.float32(255)


def _numbered(images: Iterator[ImageInput]) -> Iterator[tuple[int, ImageInput]]:
    """Number the images; refuse what is none as it is drawn."""
    for position, image in enumerate(images):
        pictures.check(image, position)
        yield position, image
