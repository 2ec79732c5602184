"""What a classification returns, and how logits become it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo.errors import ImageError


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to.

    Args:
        label: name of the class.
        probability: its softmax probability, in [0, 1].
        index: position of the class in the logits.
    """

    label: str
    probability: float
    index: int


@dataclass(frozen=True)
class Classification:
    """The most probable classes of one image, or why it could not be read.

    Args:
        source: path of the image, or ``"image 3"`` for the fourth input if that was held in memory.
        predictions: the most probable class first; empty if the image could not be read.
        error: names the image and what is wrong with it; None if it was classified.
    """

    source: str
    predictions: tuple[Prediction, ...]
    error: str | None = None

    @property
    def label(self) -> str:
        """Name of the most probable class.

        Raises:
            ImageError: the image could not be read.
        """
        return self._top.label

    @property
    def probability(self) -> float:
        """Probability of the most probable class.

        Raises:
            ImageError: the image could not be read.
        """
        return self._top.probability

    @property
    def _top(self) -> Prediction:
        if not self.predictions:
            raise ImageError(self.error or f"{self.source} has no prediction")
        return self.predictions[0]


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of logits (N, classes), in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def most_probable(probabilities: NDArray[np.float64], labels: Sequence[str], top_k: int) -> tuple[Prediction, ...]:
    """Return the ``top_k`` most probable of one image's classes; of equal ones the lower index first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(Prediction(labels[i], float(probabilities[i]), int(i)) for i in order)
