"""Some branches first, the others only where they are in doubt: when, at what cost, and with how many errors."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo._base.checks import is_integer
from ccnn_zoo.errors import ConfigurationError, MetadataError

from ._fit import fit
from ._numbers import Confidence, values_of
from ._scores import log_softmax, probabilities

MERGES = ("mean", "concat", "probability")
"""Of branches that can be merged from what some say and what the others say; a maximum over features cannot."""

_VERSION = 1
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.onnx")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BRANCHES = 1024
_WORTH = 0.9  # of the whole network's arithmetic


@dataclass(frozen=True)
class Cascade:
    """What a file says of two others beside it, which together are its network, one after the other.

    Args:
        branches: number K of branches of the whole.
        first: how many of them run on every picture.
        merge: how the branches meet, one of :data:`MERGES`.
        threshold: in [0, 1]: the others run where the first ones' highest probability is below.
        files: names of the files ``"first"`` and ``"rest"``, in the same folder.
        sha256: their checksums.
        confidence: numbers fitted for what the cascade says.
        version: of this form.

    Raises:
        MetadataError: a value is malformed; names it.
    """

    branches: int
    first: int
    merge: str
    threshold: float
    files: Mapping[str, str]
    sha256: Mapping[str, str]
    confidence: Confidence
    version: int = _VERSION

    def __post_init__(self) -> None:
        _require("version", self.version, is_integer(self.version) and self.version == _VERSION, str(_VERSION))
        several = is_integer(self.branches) and 2 <= self.branches <= _MOST_BRANCHES
        _require("branches", self.branches, several, "an integer of at least 2")
        some = is_integer(self.first) and 1 <= self.first < self.branches
        _require("first", self.first, some, "fewer than branches, at least 1")
        _require("merge", self.merge, self.merge in MERGES, f"one of {', '.join(MERGES)}")
        inside = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        _require("threshold", self.threshold, inside and 0 <= self.threshold <= 1, "a number in [0, 1]")
        for name, form, what in (("files", _FILE, "plain names"), ("sha256", _SHA256, "checksums")):
            table = getattr(self, name)
            held = isinstance(table, Mapping) and set(table) == {"first", "rest"}
            held = held and all(isinstance(text, str) and form.fullmatch(text) for text in table.values())
            _require(name, table, held, f"{what} of the files 'first' and 'rest'")

    def merged(self, first: NDArray[np.floating], rest: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the whole network's logits, (N, classes), from those of the first branches and of the others."""
        return merged(first, rest, self.first, self.branches, self.merge)

    def to_json(self) -> str:
        """Return it as the property ``cascade`` of an ONNX file holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Cascade:
        """Read it back.

        Raises:
            MetadataError: something is malformed; names it.
        """
        values = values_of(cls, "cascade", text)
        return cls(**{**values, "confidence": Confidence.from_json(json.dumps(values["confidence"]))})


class CascadePoint(NamedTuple):
    """What a threshold costs and brings on some pictures.

    Args:
        threshold: of the first branches' highest probability.
        passed_on: share of the pictures, in [0, 1], on which the other branches run too.
        cost: arithmetic of a picture, as a share of the whole network's.
        wrong: number of pictures whose class is wrong.
    """

    threshold: float
    passed_on: float
    cost: float
    wrong: int

    @classmethod
    def of(cls, threshold: float, doubted: NDArray[np.bool_], wrong: NDArray[np.bool_], share: float) -> CascadePoint:
        """Return it of pictures that are passed on where ``doubted``, with first branches of this share of the cost."""
        passed_on = float(doubted.mean())
        return cls(float(threshold), passed_on, share + (1 - share) * passed_on, int(wrong.sum()))


class FittedCascade(NamedTuple):
    """A threshold, and what was measured with it on pictures on which it was not chosen.

    Args:
        point: threshold, cost and errors.
        confidence: numbers fitted for what the cascade says of these pictures.
        pictures: how many they are.
        wrong_whole: errors of the whole network on them.
        wrong_first: of the first branches alone.
        surplus: errors of the cascade beyond those of the whole, by more than chance explains (two standard errors).
    """

    point: CascadePoint
    confidence: Confidence
    pictures: int
    wrong_whole: int
    wrong_first: int
    surplus: float

    @property
    def pays(self) -> bool:
        """Whether it saves at least a tenth of the arithmetic, and is not wrong more often than the whole network."""
        return self.point.cost <= _WORTH and self.surplus <= 0


def merged(
    first: NDArray[np.floating], rest: NDArray[np.floating], count: int, branches: int, merge: str
) -> NDArray[np.float32]:
    """Return logits of ``branches`` branches, (N, classes), from those of ``count`` of them and of the others."""
    share = count / branches
    if merge == "probability":
        parts = log_softmax(first) + np.log(share), log_softmax(rest) + np.log(1 - share)
        return np.logaddexp(*parts).astype(np.float32)
    return (share * first.astype(np.float64) + (1 - share) * rest.astype(np.float64)).astype(np.float32)


def cascade_curve(
    first: NDArray[np.floating], whole: NDArray[np.floating], targets: NDArray[np.integer], share: float
) -> list[CascadePoint]:
    """Return what 101 thresholds cost and bring, from that which passes on nothing to that which passes on all.

    Args:
        first: logits of the first branches, (N, classes).
        whole: of all.
        targets: the true classes, (N,).
        share: of the first branches in the whole network's arithmetic.
    """
    top = probabilities(first).max(1)
    wrong_first, wrong_whole = first.argmax(1) != targets, whole.argmax(1) != targets
    points = []
    for threshold in np.unique([0.0, *np.quantile(top, np.linspace(0, 1, 100)), 1.0]):
        doubted = top < threshold
        points.append(CascadePoint.of(threshold, doubted, np.where(doubted, wrong_whole, wrong_first), share))
    return points


def fit_cascade(
    first: NDArray[np.floating], whole: NDArray[np.floating], targets: NDArray[np.integer], share: float
) -> FittedCascade:
    """Choose the cheapest threshold from which on none is wrong more often than the whole network, and fit numbers.

    So a cheap one that only chance made right is passed over, where dearer ones are wrong more often again.
    The threshold is chosen on every second held-out picture, its cost and errors are those on the others, and for what
    the cascade says of these the numbers are fitted: they were not looked at before, so the promises hold.

    Args:
        first, whole, targets, share: of held-out pictures, as :func:`cascade_curve` takes them.

    Raises:
        ConfigurationError: there are fewer than 200 pictures.
    """
    if len(targets) < 200:
        raise ConfigurationError(f"{len(targets)} held-out pictures are too few for a cascade: give at least 200")
    one, other = slice(0, None, 2), slice(1, None, 2)
    curve = cascade_curve(first[one], whole[one], targets[one], share)
    most = int((whole[one].argmax(1) != targets[one]).sum())
    *_, threshold = curve[-1], *takewhile(lambda point: point.wrong <= most, reversed(curve))
    first, whole, targets = first[other], whole[other], targets[other]
    doubted = probabilities(first).max(1) < threshold.threshold
    said = np.where(doubted[:, None], whole, first)
    wrong, wrong_whole = said.argmax(1) != targets, whole.argmax(1) != targets
    return FittedCascade(
        CascadePoint.of(threshold.threshold, doubted, wrong, share),
        fit(said, targets),
        len(targets),
        int(wrong_whole.sum()),
        int((first.argmax(1) != targets).sum()),
        float(wrong.sum() - wrong_whole.sum() - 2 * np.sqrt((wrong != wrong_whole).sum())),
    )


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise MetadataError(f"cascade: {name} must be {expected}, got {reprlib.repr(value)}; export it again")
