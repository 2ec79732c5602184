"""What a classification returns, and how probabilities become it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo.errors import ImageError

_UNLIKE = 99


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to.

    Args:
        label: name of the class.
        probability: its softmax probability, in [0, 1]; of the logits over the temperature that the file carries.
        index: position of the class in the logits.
    """

    label: str
    probability: float
    index: int


@dataclass(frozen=True)
class OutOfDistribution:
    """How unlike the known pictures one is.

    Args:
        percentile: share of the held-out pictures that are less so, in whole percents from 0 to 100: the larger of
            those by its energy and by the mutual information of the branches, where there are branches. For networks
            with ``merge="probability"`` the mean energy of the branches, or without them the entropy, stands for it.
            One of two scores is enough, so up to twice as many usual pictures are above a percentile as its name says.
        energy: minus the log-sum-exp of its logits.
    """

    percentile: float
    energy: float

    @property
    def unlike(self) -> bool:
        """Whether hardly any of the held-out pictures was as unlike them: its percentile is 99 or more."""
        return self.percentile >= _UNLIKE


@dataclass(frozen=True)
class Classification:
    """The most probable classes of one image, and their worth; or why it could not be read.

    Of what follows ``error`` a field is None where it was not asked for, or the file carries nothing of it.

    Args:
        source: path of the image, or ``"image 3"`` for the fourth input if that was held in memory.
        predictions: the most probable class first; empty if the image could not be read.
        error: names the image and what is wrong with it; None if it was classified.
        prediction_set: the classes among which the true one is with the ``coverage`` asked for, the most probable
            first.
        abstained: why no decision is made at the ``max_risk`` asked for; None where it is made.
        entropy: of the probabilities, in nats: 0 (sure) to log(classes).
        agreement: share of the branches, in [0, 1], whose most probable class is that of the network.
        mutual_information: how far the branches differ, in nats: 0 (all say the same) to log(branches).
        ood: how unlike the known pictures it is.
        branches: the most probable class of each branch.
    """

    source: str
    predictions: tuple[Prediction, ...]
    error: str | None = None
    prediction_set: tuple[str, ...] | None = None
    abstained: str | None = None
    entropy: float | None = None
    agreement: float | None = None
    mutual_information: float | None = None
    ood: OutOfDistribution | None = None
    branches: tuple[str, ...] | None = None

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


def most_probable(probabilities: NDArray[np.float64], labels: Sequence[str], top_k: int) -> tuple[Prediction, ...]:
    """Return the ``top_k`` most probable of one image's classes; of equal ones the lower index first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(Prediction(labels[i], float(probabilities[i]), int(i)) for i in order)
