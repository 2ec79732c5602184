"""A loaded network that classifies images."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ccnn_zoo.errors import ConfigurationError, DeviceError, ImageError, IntegrityError, MetadataError
from ccnn_zoo.metadata import ModelMetadata

from . import _images
from ._images import ImageInput
from ._preprocess import preprocess
from ._providers import ONNXRUNTIME_ERRORS
from ._results import Classification, most_probable, softmax
from ._stream import batches, mapped


class ImageClassifier:
    """A network in onnxruntime with its labels and preprocessing; made by :func:`ccnn_zoo.runtime.load`.

    It holds no state between calls, so threads may share it.

    Args:
        session: maps float32 images (N, C, H, W) to logits (N, classes), and carries :class:`ModelMetadata`.
        source: name of the file, for error messages.
        batch_size: images that are classified at once; memory grows with it, not with the number of images.

    Attributes:
        metadata: labels and preprocessing.
        provider: the execution provider that runs the network, e.g. ``"CPUExecutionProvider"``.
        device: ``"cuda"`` or ``"cpu"``.

    Raises:
        MetadataError: the file has no metadata, or its graph contradicts them.
    """

    def __init__(self, session: ort.InferenceSession, *, source: str, batch_size: int = 32) -> None:
        self.metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, source=source)
        self.provider: str = session.get_providers()[0]
        self.device = "cuda" if self.provider.startswith("CUDA") else "cpu"
        self._session = session
        self._source = source
        self._batch_size = at_least_one("batch_size", batch_size)
        _check_graph(session, self.metadata, source)
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def __repr__(self) -> str:
        return (
            f"ImageClassifier({self.metadata.architecture!r}, branches={self.metadata.branches}, "
            f"{len(self.metadata.labels)} classes, {self.provider})"
        )

    def classify(self, images: ImageInput | Iterable[ImageInput], top_k: int = 5) -> list[Classification]:
        """Classify one image or many.

        An image that cannot be read gets an entry with ``error``; the others are classified all the same.

        Args:
            images: paths, PIL images or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), mixed at
                will. They are turned as their EXIF orientation says, transparency is dropped, and 16-bit
                grey is scaled to 8 bits.
            top_k: how many of the most probable classes to return; all of them if there are fewer.

        Returns:
            one entry per image, in the order of ``images``.

        Raises:
            ConfigurationError: ``top_k`` is below 1.
            ImageError: an input is neither a path nor a PIL image nor such an array.
            DeviceError: the device fails while it runs, e.g. by lack of memory.
        """
        return list(self.classify_stream(images, top_k))

    def classify_stream(
        self, images: ImageInput | Iterable[ImageInput], top_k: int = 5, *, workers: int = 0
    ) -> Iterator[Classification]:
        """Classify images one batch after another, as :meth:`classify` does; endless iterables are welcome.

        Arguments are checked now, except for the images of a generator: those as they are drawn. Memory grows with
        ``batch_size``, not with the number of images.

        Args:
            images: as :meth:`classify` takes them.
            top_k: likewise.
            workers: threads that decode up to two batches ahead of the network; 0 decodes when the batch is due.
        """
        if not isinstance(workers, int) or workers < 0:
            raise ConfigurationError(f"workers must be an integer of at least 0, got {workers!r}")
        return self._stream(_images.iterate(images), at_least_one("top_k", top_k), workers)

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of preprocessed images.

        Args:
            batch: finite float32 values (N, C, H, W), N at least 1, normalised as ``metadata`` says.

        Returns:
            logits (N, classes).

        Raises:
            ConfigurationError: ``batch`` has another type, shape or dtype, or is not finite.
            DeviceError: the device fails while it runs.
            IntegrityError: the logits are not finite or do not match the labels.
        """
        self._check_batch(batch)
        try:
            (logits,) = self._session.run([self._output], {self._input: np.ascontiguousarray(batch)})
        except ONNXRUNTIME_ERRORS as error:
            raise DeviceError(
                f"{self.provider} failed on a batch of {len(batch)}: {error} If memory ran out, lower batch_size."
            ) from error
        if logits.shape != (len(batch), len(self.metadata.labels)) or not np.isfinite(logits).all():
            raise IntegrityError(
                f"{self._source} turned {len(batch)} images into logits of shape {logits.shape}, not into "
                f"finite ones for its {len(self.metadata.labels)} labels. Download or export it again."
            )
        return logits

    def _stream(self, images: Iterator[ImageInput], top_k: int, workers: int) -> Iterator[Classification]:
        prepared = mapped(self._prepare, _checked(images), workers, ahead=2 * self._batch_size)
        for batch in batches(prepared, self._batch_size):
            yield from self._classified(batch, top_k)

    def _prepare(self, numbered: tuple[int, ImageInput]) -> _Prepared:
        """Decode one image and preprocess it; called in several threads at once."""
        position, image = numbered
        name = _images.name_of(image, position)
        try:
            picture = _images.read(image, self.metadata.input_size[0], name)
        except ImageError as error:
            return _Prepared(name, None, str(error))
        return _Prepared(name, preprocess(picture, self.metadata))

    def _classified(self, batch: list[_Prepared], top_k: int) -> Iterator[Classification]:
        values = [image.values for image in batch if image.values is not None]
        probabilities = iter(softmax(self.predict(np.stack(values))) if values else ())
        for image in batch:
            if image.values is None:
                yield Classification(image.name, (), image.error)
            else:
                yield Classification(image.name, most_probable(next(probabilities), self.metadata.labels, top_k))

    def _check_batch(self, batch: NDArray[np.float32]) -> None:
        expected = "float32 (N, {}, {}, {})".format(*self.metadata.input_size)
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
            found = f"an array of {batch.dtype}" if isinstance(batch, np.ndarray) else f"a {type(batch).__name__}"
            raise ConfigurationError(f"predict takes a numpy array, {expected}, got {found}")
        if batch.ndim != 4 or batch.shape[1:] != self.metadata.input_size or len(batch) == 0:
            raise ConfigurationError(f"predict takes {expected} with N at least 1, got shape {batch.shape}")
        if not np.isfinite(batch).all():
            raise ConfigurationError("predict takes finite values, got NaN or infinity: check the normalisation")


class _Prepared(NamedTuple):
    """An image as the network takes it, or why it could not be read."""

    name: str
    values: NDArray[np.float32] | None
    error: str | None = None


def _checked(images: Iterator[ImageInput]) -> Iterator[tuple[int, ImageInput]]:
    """Number the images; refuse what is none as it is drawn."""
    for position, image in enumerate(images):
        _images.check(image, position)
        yield position, image


def at_least_one(name: str, value: int) -> int:
    """Return ``value``, an integer of at least 1.

    Raises:
        ConfigurationError: it is not; names the argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigurationError(f"{name} must be an integer of at least 1, got {value!r}")
    return number


def _check_graph(session: ort.InferenceSession, metadata: ModelMetadata, source: str) -> None:
    """Compare the graph's input and logits with the metadata; sizes that the graph leaves open agree."""
    inputs, logits = session.get_inputs(), session.get_outputs()[0]
    expected = (None, *metadata.input_size)
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _agrees(inputs[0].shape, expected):
        found = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
        raise MetadataError(
            f"{source} takes ({found}), its metadata say one float32 input (N, C, H, W) with any N and "
            f"(C, H, W) = {metadata.input_size}. Export it again with `ccnn export`."
        )
    if not _agrees(logits.shape, (None, len(metadata.labels))):
        raise MetadataError(
            f"{source} gives {logits.name} of shape {logits.shape} for {len(metadata.labels)} labels. "
            "Export it again with one label per class."
        )


def _agrees(shape: list[int | str | None], expected: tuple[int | None, ...]) -> bool:
    """Compare a graph's shape with sizes, None standing for one that the graph must leave open."""
    return len(shape) == len(expected) and all(
        not isinstance(side, int) or side == size for side, size in zip(shape, expected, strict=True)
    )
