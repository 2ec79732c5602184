"""What the classifier says of its own answers: sets, abstentions and scores, beside the probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo._base.checks import check_integer
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.uncertainty import doubt, prediction_sets, probabilities

from ._results import Classification, OutOfDistribution, most_probable


@dataclass(frozen=True)
class Asked:
    """What is asked of every picture.

    Args:
        metadata: of the network.
        top_k: number of the most probable classes.
        coverage: of the prediction sets; None makes none.
        max_risk: of the decisions; None always decides.
        sets: kind of the sets.

    Raises:
        ConfigurationError: one is out of range, or was not fitted for this file.
    """

    metadata: ModelMetadata
    top_k: int
    coverage: float | None = None
    max_risk: float | None = None
    sets: str = "lac"

    def __post_init__(self) -> None:
        check_integer("top_k", self.top_k, numpys=True)
        numbers = self.metadata.confidence
        for name in ("coverage", "max_risk"):
            if getattr(self, name) is not None and numbers is None:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r}: this file carries no thresholds. Fit them on held-out pictures "
                    "with `ccnn calibrate-confidence`, which writes them into it."
                )
        if self.coverage is not None:
            numbers.threshold_of_set(self.coverage, self.sets)
        if self.max_risk is not None:
            numbers.threshold_of_decision(self.max_risk)

    def arguments(self) -> dict[str, Any]:
        """Return what :meth:`ImageClassifier.classify` is to be called with to ask the same."""
        return {name: getattr(self, name) for name in ("top_k", "coverage", "max_risk", "sets")}

    def classifications(
        self, names: Sequence[str], logits: NDArray[np.float32], branch_logits: NDArray[np.float32] | None
    ) -> Iterator[Classification]:
        """Yield what is known of each picture.

        Args:
            names: of the N pictures.
            logits: (N, classes).
            branch_logits: (K, N, classes), where the file gives them.
        """
        labels, numbers = self.metadata.labels, self.metadata.confidence
        if numbers is None and branch_logits is None:  # nothing further is known, nothing further is computed
            for name, probability in zip(names, probabilities(logits), strict=True):
                yield Classification(name, most_probable(probability, labels, self.top_k))
            return
        found = doubt(logits, branch_logits, numbers)
        members = None
        if self.coverage is not None:
            members = prediction_sets(
                found.probabilities, numbers.threshold_of_set(self.coverage, self.sets), self.sets
            )
        for row, name in enumerate(names):
            probability = found.probabilities[row]
            yield Classification(
                name,
                most_probable(probability, labels, self.top_k),
                prediction_set=None if members is None else _chosen(probability, members[row], labels),
                abstained=self._abstained(float(probability.max())),
                entropy=float(found.entropy[row]),
                agreement=None if found.agreement is None else float(found.agreement[row]),
                mutual_information=None if found.mutual_information is None else float(found.mutual_information[row]),
                ood=None
                if found.percentile is None
                else OutOfDistribution(float(found.percentile[row]), float(found.energy[row])),
                branches=None if found.branches is None else tuple(labels[top] for top in found.branches[:, row]),
            )

    def _abstained(self, top: float) -> str | None:
        if self.max_risk is None:
            return None
        threshold = self.metadata.confidence.threshold_of_decision(self.max_risk)
        if threshold > 1:
            return f"no probability is high enough to be wrong on at most {100 * self.max_risk:g} % of decisions"
        if top >= threshold:
            return None
        return (
            f"the highest probability, {top:.3f}, is below {threshold:.3f}, from which at most "
            f"{100 * self.max_risk:g} % of decisions are wrong"
        )


def _chosen(probability: NDArray, members: NDArray[np.bool_], labels: Sequence[str]) -> tuple[str, ...]:
    order = np.argsort(-probability, kind="stable")
    return tuple(labels[i] for i in order if members[i])
