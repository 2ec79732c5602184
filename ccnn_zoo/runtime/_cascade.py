"""Some branches on every picture, the others where these are in doubt: two sessions behind one classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray

from ccnn_zoo._files import sha256_of
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.uncertainty import Cascade, probabilities

from ._header import Header
from ._session import ImageClassifier, Outputs


def cascade_of(header: Header, path: Path) -> Cascade:
    """Return what a file says of the two that lie beside it.

    Raises:
        ConfigurationError: it says nothing.
        MetadataError: what it says is malformed.
    """
    text = header.properties.get("cascade")
    if text is None:
        raise ConfigurationError(
            f"{path} has no cascade: export the network with `ccnn export --cascade`, which writes two files beside it"
        )
    return Cascade.from_json(text)


def part_of(cascade: Cascade, part: str, path: Path) -> Path:
    """Return the file of a part, which lies beside ``path`` and has the checksum that this one names.

    Raises:
        RepositoryError: it is not there.
        IntegrityError: it is another.
    """
    file = path.parent / cascade.files[part]
    try:
        found = sha256_of(file)
    except OSError as error:
        raise RepositoryError(
            f"{path} needs {file.name} beside it ({error.strerror}). Copy all three files."
        ) from error
    if found != cascade.sha256[part]:
        raise IntegrityError(
            f"{file} is not the one that {path} was exported with. Export it again, or copy all three."
        )
    return file


class CascadedClassifier(ImageClassifier):
    """An :class:`ImageClassifier` of which most pictures may run some branches only; made by ``load(cascade=True)``.

    Args:
        first: runs on every picture.
        rest: the other branches.
        cascade: when they run, and how both are merged.
        metadata: of the whole network.
    """

    def __init__(
        self, first: ImageClassifier, rest: ImageClassifier, cascade: Cascade, metadata: ModelMetadata, source: str
    ) -> None:
        # What it takes, batches and pictures it has from the first.
        vars(self).update(vars(first))
        self.metadata = replace(metadata, confidence=cascade.confidence)
        self.source = source
        self._first, self._rest, self._cascade = first, rest, cascade

    def _forward(self, batch: NDArray) -> Outputs:
        logits = self._first._forward(batch).logits
        doubted = probabilities(logits).max(1) < self._cascade.threshold
        if doubted.any():
            rest = self._rest._forward(batch[doubted]).logits
            logits = logits.copy()
            logits[doubted] = self._cascade.merged(logits[doubted], rest)
        return Outputs(logits, None)

    def _predict_tensor(self, tensor: object) -> object:
        raise ConfigurationError(
            f"a cascade looks at its first logits, so it takes numpy arrays, got a {type(tensor).__name__}"
        )


def check_choice(cascade: Cascade, branches: int, path: Path) -> None:
    """Refuse a number of branches that there is no file for.

    Raises:
        ConfigurationError: names those that there are.
    """
    if isinstance(branches, bool) or branches not in (cascade.first, cascade.branches):
        raise ConfigurationError(
            f"{path} was exported to run {cascade.first} or all {cascade.branches} branches, got branches={branches!r}"
        )


def same_labels(first: ImageClassifier, rest: ImageClassifier, metadata: ModelMetadata, path: Path) -> None:
    """Refuse parts that do not read the same pictures, or know other classes.

    Raises:
        IntegrityError: they differ.
    """
    ours = {replace(m, branches=1, confidence=None) for m in (first.metadata, rest.metadata, metadata)}
    if len(ours) > 1:
        raise IntegrityError(f"the files of the cascade of {path} differ in labels or preprocessing. Export it again.")
