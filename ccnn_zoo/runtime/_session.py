"""A loaded network that classifies images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo import pictures
from ccnn_zoo._base.checks import check_integer
from ccnn_zoo.errors import ConfigurationError, ImageError, IntegrityError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.pictures import ImageInput

from ._backend import Session, like
from ._checks import branch_output, checked_batch, checked_tensor
from ._doubt import Asked
from ._header import Header
from ._preprocess import preprocess, whole_picture
from ._results import Classification
from ._stream import batches, mapped


class ImageClassifier:
    """A network with its labels and preprocessing; made by :func:`ccnn_zoo.runtime.load`.

    It holds no state between calls, so threads may share it.

    Args:
        session: runs the network.
        header: what the network takes and gives.
        metadata: labels and preprocessing.
        source: name of the file, for error messages.
        batch_size: images that are classified at once; memory grows with it, not with the number of images.

    Attributes:
        metadata: labels and preprocessing.
        provider: what runs the network, e.g. ``"CPUExecutionProvider"``.
        device: the name of the backend's device, e.g. ``"cuda"`` or ``"cpu"``.
        source: the path of the file.
        reopened_by: opens it again; that is what a pickle of it holds, for other processes.
    """

    reopened_by: Callable[[], ImageClassifier] | None = None

    def __init__(
        self, session: Session, header: Header, metadata: ModelMetadata, *, source: str, batch_size: int = 32
    ) -> None:
        self.metadata = metadata
        self.provider = session.provider
        self.device = session.device
        self._session = session
        self.source = source
        self._batch_size = check_integer("batch_size", batch_size, numpys=True)
        self._input = header.inputs[0]
        self._output = header.outputs[0].name
        self._branch_output = branch_output(header, metadata)
        fixed = self._input.shape[0]
        self._fixed_batch = fixed if isinstance(fixed, int) else session.fixed_batch

    def __reduce__(self) -> tuple[Callable[[], ImageClassifier], tuple[()]]:
        return reopened(self)

    def __repr__(self) -> str:
        return (
            f"ImageClassifier({self.metadata.architecture!r}, branches={self.metadata.branches}, "
            f"{len(self.metadata.labels)} classes, {self.provider})"
        )

    def classify(
        self,
        images: ImageInput | Iterable[ImageInput],
        top_k: int = 5,
        *,
        coverage: float | None = None,
        max_risk: float | None = None,
        sets: str = "lac",
    ) -> list[Classification]:
        """Classify one image or many.

        An image that cannot be read gets an entry with ``error``; the others are classified all the same.

        Args:
            images: paths, PIL images, encoded pictures (bytes, or binary files that are open, ``io.BytesIO`` too) or
                uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), mixed at will. They are turned as their EXIF
                orientation says, transparency is dropped, and 16-bit
                grey is scaled to 8 bits.
            top_k: how many of the most probable classes to return; all of them if there are fewer.
            coverage: make prediction sets that hold the true class of this share of pictures: 0.9, 0.95 or 0.99.
            max_risk: decide only where at most this share of decisions is wrong: 0.005, 0.01, 0.02, 0.05 or 0.1.
                Both hold for pictures like the held-out ones on which ``ccnn calibrate-confidence`` fitted the file.
            sets: ``"lac"``, the smallest sets on average, or ``"aps"``, which are larger for harder pictures.

        Returns:
            one entry per image, in the order of ``images``.

        Raises:
            ConfigurationError: ``top_k`` is below 1, or ``coverage``, ``max_risk`` or ``sets`` was not fitted for the
                file.
            ImageError: an input is none of these.
            DeviceError: the device fails while it runs, e.g. by lack of memory.
        """
        return list(self.classify_stream(images, top_k, coverage=coverage, max_risk=max_risk, sets=sets))

    def classify_stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        top_k: int = 5,
        *,
        workers: int = 0,
        coverage: float | None = None,
        max_risk: float | None = None,
        sets: str = "lac",
    ) -> Iterator[Classification]:
        """Classify images one batch after another, as :meth:`classify` does; endless iterables are welcome.

        Arguments are checked now, except for the images of a generator: those as they are drawn. Memory grows with
        ``batch_size``, not with the number of images.

        Args:
            images: as :meth:`classify` takes them.
            top_k, coverage, max_risk, sets: likewise.
            workers: threads that decode up to two batches ahead of the network; 0 decodes when the batch is due.
        """
        check_integer("workers", workers, least=0)
        asked = Asked(self.metadata, top_k, coverage, max_risk, sets)
        return self._stream(pictures.iterate(images), asked, workers)

    def logits_of(self, images: ImageInput | Iterable[ImageInput]) -> Outputs:
        """Return the logits of pictures, and those of each branch where the file has them.

        Args:
            images: as :meth:`classify` takes them; all are held in memory.

        Raises:
            ImageError: a picture cannot be read; names it.
        """
        found: list[Outputs] = []
        for batch in batches(map(self._prepare, _checked(pictures.iterate(images))), self._batch_size):
            for image in batch:
                if image.error is not None:
                    raise ImageError(image.error)
            found.append(self._outputs([image.values for image in batch]))
        if not found:
            raise ImageError("there are no pictures to classify")
        return Outputs.joined(found)

    def predict(self, batch: NDArray) -> NDArray:
        """Return the logits of preprocessed images.

        Args:
            batch: finite float32 values (N, C, H, W), N at least 1, normalised as ``metadata`` says; uint8 pictures
                (N, H, W, C) for a network that preprocesses by itself. A tensor of torch or any other library with
                DLPack is taken without a copy, on the network's device or in CPU memory; its values are not looked
                at, and it must have the dtype of the file's input.

        Returns:
            logits (N, classes): an array, or for a tensor one of the same library in the same memory.

        Raises:
            ConfigurationError: ``batch`` has another type, shape or dtype, or is not finite.
            DeviceError: the device fails while it runs.
            IntegrityError: the logits are not finite or do not match the labels.
        """
        if not isinstance(batch, np.ndarray) and hasattr(batch, "__dlpack__"):
            return self._predict_tensor(batch)
        return self._forward(batch).logits

    def predict_branches(self, batch: NDArray) -> Outputs:
        """Return the logits of preprocessed images, and those of each branch, (K, N, classes), where the file has them.

        Args:
            batch: an array as :meth:`predict` takes it.

        Raises: as :meth:`predict`.
        """
        return self._forward(batch)

    def _forward(self, batch: NDArray) -> Outputs:
        values = checked_batch(batch, self._input, self.metadata)
        size = self._fixed_batch or len(values)
        found = Outputs.joined([self._run(values[start : start + size], size) for start in range(0, len(values), size)])
        for outputs in found:
            if outputs is not None and not np.isfinite(outputs).all():
                raise self._malformed(outputs.shape, len(values))
        return found

    def _run(self, part: NDArray, size: int) -> Outputs:
        """Run up to ``size`` images; a batch that must be full is filled with its last image."""
        padded = part if len(part) == size else np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        outputs = self._session.run(np.ascontiguousarray(padded))
        logits = np.asarray(outputs[self._output])
        self._check_shape(logits.shape, len(padded))
        branches = None
        if self._branch_output is not None:
            branches = np.asarray(outputs[self._branch_output])
            if branches.shape != (self.metadata.branches, *logits.shape):
                raise self._malformed(branches.shape, len(padded))
            branches = branches[:, : len(part)].astype(np.float32, copy=False)
        return Outputs(logits[: len(part)].astype(np.float32, copy=False), branches)

    def _predict_tensor(self, tensor: object) -> object:
        images = checked_tensor(tensor, self._input, self.metadata, self._fixed_batch)
        logits = like(tensor, self._session.run_tensor(tensor)[self._output])
        shape = getattr(logits, "shape", ())
        self._check_shape(tuple(shape() if callable(shape) else shape), images)
        return logits

    def _check_shape(self, shape: tuple[int, ...], images: int) -> None:
        if shape != (images, len(self.metadata.labels)):
            raise self._malformed(shape, images)

    def _malformed(self, shape: tuple[int, ...], images: int) -> IntegrityError:
        return IntegrityError(
            f"{self.source} turned {images} images into logits of shape {shape}, not into finite ones for its "
            f"{len(self.metadata.labels)} labels. Download or export it again."
        )

    def _stream(self, images: Iterator[ImageInput], asked: Asked, workers: int) -> Iterator[Classification]:
        prepared = mapped(self._prepare, _checked(images), workers, ahead=2 * self._batch_size)
        for batch in batches(prepared, self._batch_size):
            yield from self._classified(batch, asked)

    def _prepare(self, numbered: tuple[int, ImageInput]) -> _Prepared:
        """Decode one image and preprocess it; called in several threads at once."""
        position, image = numbered
        name = pictures.name_of(image, position)
        try:
            picture = pictures.read(image, self.metadata.input_size[0], name)
        except ImageError as error:
            return _Prepared(name, None, str(error))
        if self.metadata.preprocessing_in_graph:
            return _Prepared(name, whole_picture(picture, self.metadata))
        return _Prepared(name, preprocess(picture, self.metadata))

    def _classified(self, batch: list[_Prepared], asked: Asked) -> Iterator[Classification]:
        readable = [image for image in batch if image.values is not None]
        found: Iterator[Classification] = iter(())
        if readable:
            outputs = self._outputs([image.values for image in readable])
            found = asked.classifications([image.name for image in readable], *outputs)
        for image in batch:
            yield Classification(image.name, (), image.error) if image.values is None else next(found)

    def _outputs(self, values: Sequence[NDArray]) -> Outputs:
        """Return what the network gives for images; pictures that it resizes itself may differ in size."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(values):
            rows.setdefault(image.shape, []).append(row)
        found = Outputs.joined([self._forward(np.stack([values[row] for row in same])) for same in rows.values()])
        order = np.argsort(np.concatenate([np.asarray(same) for same in rows.values()]))
        return Outputs(found.logits[order], None if found.branch_logits is None else found.branch_logits[:, order])


class Outputs(NamedTuple):
    """What a network gives for N images: ``logits`` (N, classes), ``branch_logits`` (K, N, classes) or None."""

    logits: NDArray[np.float32]
    branch_logits: NDArray[np.float32] | None

    @staticmethod
    def joined(parts: Sequence[Outputs]) -> Outputs:
        """Return the outputs for the images of all parts, at least one, in their order."""
        if len(parts) == 1:
            return parts[0]
        branches = None if parts[0].branch_logits is None else np.concatenate([b for _, b in parts], axis=1)
        return Outputs(np.concatenate([logits for logits, _ in parts]), branches)


def reopened(opened: Any) -> tuple[Callable[[], Any], tuple[()]]:
    """Return what pickle makes a classifier or a detector of: its file is opened again, on the same device.

    Raises:
        ConfigurationError: it was not made by ``load``, so that nothing says how.
    """
    if opened.reopened_by is None:
        raise ConfigurationError(
            f"a {type(opened).__name__} is pickled by how it was loaded: make it by ccnn_zoo.runtime.load or "
            "load_detector, or load it in each process"
        )
    return opened.reopened_by, ()


class _Prepared(NamedTuple):
    """An image as the network takes it, or why it could not be read."""

    name: str
    values: NDArray | None
    error: str | None = None


def _checked(images: Iterator[ImageInput]) -> Iterator[tuple[int, ImageInput]]:
    """Number the images; refuse what is none as it is drawn."""
    for position, image in enumerate(images):
        pictures.check(image, position)
        yield position, image
