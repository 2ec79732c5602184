"""Rows of the comparison on CIFAR-10: which networks are compared, with which seeds, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _others
from ._cells import Cell
from ._plans import Plan
from ._trial import (
    AVERAGED,
    CASCADE,
    CascadedEnsemble,
    Ensemble,
    Mirrored,
    MirroredCascade,
    Student,
    Trial,
    Tuned,
    Unaveraged,
)

PLAIN = "plain"
_DECAY = 0.998


@dataclass(frozen=True)
class Row:
    """A line of the comparison: how its cell of a seed is made, or why it cannot be."""

    label: str
    make: Callable[[Plan, int], Cell]
    missing: str | None = None


def _trial(
    label: str, network: str = "ours", width: float = 1, longer: int = 1, kind: type[Trial] = Trial, **changes: Any
) -> Row:
    def make(plan: Plan, seed: int) -> Trial:
        sizes = {**plan.network, "channels": [round(width * c) for c in plan.network["channels"]]}
        kwargs = {**changes.get("model_kwargs", {}), **sizes}
        epochs = longer * plan.overrides["epochs"]
        settings = {"branches": 1, "epochs": epochs, **changes, "model_kwargs": kwargs, "seed": seed}
        made = plan.training("cifar10_table1", network, **settings)
        return kind(made.recipe, network, elsewhere=plan.elsewhere, row=label)

    missing = None if network not in _others.NETWORKS or _others.available() else _others.MISSING
    return Row(label, make, missing)


def _both(label: str, **changes: Any) -> tuple[Row, Row]:
    """Return a network with the average of its weights, and the same training without: one training for both."""
    last = _trial(label, kind=partial(Unaveraged, decay=_DECAY), **changes)
    return Row(label + AVERAGED, lambda plan, seed: last.make(plan, seed).averaged()), last


def _ensemble(members: int, kind: type[Ensemble] = Ensemble, how: str = "", mirrored: bool = False) -> Row:
    label = f"ensemble of {members} plain networks{how}"

    def make(plan: Plan, seed: int) -> Ensemble:
        first = (_TWICE if mirrored else _PLAIN).make(plan, seed)
        return kind(tuple(first.as_member(number) for number in range(members)), label)

    return Row(label, make)


def _cascade(members: int) -> Row:
    return _ensemble(members, CascadedEnsemble, CASCADE)


def _teachers(plan: Plan, seed: int) -> Ensemble:
    """Return four plain networks with averaged weights, which their checkpoints are."""
    first = _PLAIN.make(plan, seed).averaged()
    return Ensemble(tuple(first.as_member(number) for number in range(4)), _TEACHERS.label)


def _student(teacher: Row) -> Row:
    label = f"{PLAIN}, taught by {teacher.label}"
    plain = _trial(label)

    def make(plan: Plan, seed: int) -> Student:
        own = plain.make(plan, seed)
        return Student(own.recipe, elsewhere=own.elsewhere, row=label, teacher=teacher.make(plan, seed))

    return Row(label, make)


def _tuned(label: str, epochs: int, **changes: Any) -> Row:
    ours = _trial(label, epochs=epochs, **changes)

    def make(plan: Plan, seed: int) -> Tuned:
        own = ours.make(plan, seed)
        start = _PLAIN_AVERAGED.make(plan, seed)
        return Tuned(own.recipe, elsewhere=own.elsewhere, row=label, start=start)

    return Row(label, make)


_MIRRORED = ", image and mirror image"
_HOW: dict[str, dict[str, Any]] = {
    "joint": {},
    "branches": {"merge": "probability", "objective": "branches"},
    "half joint": {"merge": "probability", "objective": 0.5},
}
"""How branches are trained together: by one loss, by their own, which makes each answer alone, or half by these."""


def _mirrored(how: str, settings: str = "", alike: bool = False, **changes: Any) -> Row:
    """Return two branches of which one sees the mirror image; alike: their calibration kernels start the same."""
    label = f"K=2, {how}, one sees the mirror image{settings}"
    kwargs = {"mirrored": [1], **({"diversity": 0.0} if alike else {})}
    return _trial(label, branches=2, model_kwargs=kwargs, **_HOW[how], **changes)


def _seen(plain: str, kind: type[Mirrored] = Mirrored, how: str = "", **changes: Any) -> Row:
    """Return the plain network of a row, shown the mirror image."""
    return _trial(plain + _MIRRORED + how, kind=partial(kind, decay=_DECAY, plain=plain), **changes)


def _plain_longer(times: str, longer: int) -> tuple[Row, Row]:
    """Return the plain network of a longer training, and the same shown the mirror image."""
    plain = _both(f"{PLAIN}, trained {times} as long", longer=longer)[1]
    return plain, _seen(plain.label, longer=longer)


_PLAIN_AVERAGED, _PLAIN = _both(PLAIN)
_TWICE, _TWICE_CASCADE = _seen(PLAIN), _seen(PLAIN, MirroredCascade, CASCADE)
# Of as much arithmetic in training as two branches.
_LONGER = _plain_longer("twice", 2)
# Until the training is over, or nearly so: few pictures make that short enough.
_LONG_OF_FEW = (
    *_plain_longer("8 times", 8),
    _trial("K=2, joint, trained 8 times as long", longer=8, branches=2),
)
_K2_AVERAGED, K2 = _both("K=2, joint", branches=2)
_K4_AVERAGED, _K4 = _both("K=4, joint", branches=4)
_K8 = _trial("K=8, joint", branches=8)
_JOINT_MIRRORED = _mirrored("joint")
_FOUR_MIRRORED = _trial("K=4, joint, two see the mirror image", branches=4, model_kwargs={"mirrored": [2, 3]})
# The same, with branches that answer alone, too.
_BRANCHES_MIRRORED = _mirrored("branches")
_HALF_MIRRORED = _mirrored("half joint")
# The same without calibration: what is left is one network that learns from both pictures at once, up to its heads.
_ALIKE = _mirrored("half joint", ", R alike", alike=True, calibration_lr=0.0)
_ALIKE_CHOICES = (
    _mirrored("half joint", ", R alike at first", alike=True),
    _mirrored("branches", ", R alike", alike=True, calibration_lr=0.0),
    _mirrored("joint", ", R alike", alike=True, calibration_lr=0.0),
)
_TUNED = _tuned(
    f"plain, then 15 epochs as {_HALF_MIRRORED.label}, lr 0.02",
    epochs=15,
    lr=0.02,
    branches=2,
    model_kwargs={"mirrored": [1]},
    **_HOW["half joint"],
)
_FIRST = (_PLAIN, _PLAIN_AVERAGED, _TWICE, _TWICE_CASCADE, K2, _K2_AVERAGED, _JOINT_MIRRORED, _K4, _K4_AVERAGED)


def _dense(branches: int, how: str = "", width: float = 1) -> Row:
    """Return branches of which each reads the features of all: w is K times as large, and the multiply-adds K * K."""
    model_kwargs = {"mixing": "dense"}
    return _trial(f"K={branches}, joint, dense{how}", width=width, branches=branches, model_kwargs=model_kwargs)


_DENSE = _dense(2)
# Of about as many trained weights as the plain network, and K times its multiply-adds.
_DENSE_NARROW = (_dense(2, ", 1.41 times narrower", 2**-0.5), _dense(4, ", 2 times narrower", 0.5))
_LOOKED_BETTER = (
    _trial("K=2, joint, R of any sign", "free_calibration", branches=2),
    _trial("K=2, joint, random signs", "random_signs", branches=2),
    _DENSE,
)
# Each with two branches, which train in half the time of four.
CHOICES = (
    _trial("K=2, branches, probability", branches=2, **_HOW["branches"]),
    _trial("K=2, half joint, probability", branches=2, **_HOW["half joint"]),
    _trial("K=2, joint, probability", branches=2, merge="probability"),
    *_LOOKED_BETTER,
    _trial("K=2, joint, learned scales", "learned_scales", branches=2),
    _trial("K=2, joint, R frozen", branches=2, calibration_lr=0.0),
    _trial("K=2, joint, sigma 1e-4", branches=2, noise_std=1e-4),
)
_TEACHERS = Row(f"ensemble of 4 plain networks{AVERAGED}", _teachers)
_TAUGHT = (_student(_TEACHERS), _student(_K4_AVERAGED))
_ENSEMBLES = (_ensemble(2), _cascade(2), _ensemble(4), _cascade(4))
_ENSEMBLE_MIRRORED = _ensemble(2, how=_MIRRORED, mirrored=True)
# Of as many multiply-adds as an ensemble of two as a cascade, an ensemble of two, and one of four.
_WIDER = (
    _trial("plain, 1.19 times wider", width=2**0.25),
    _trial("plain, 1.41 times wider", width=2**0.5),
    _trial("plain, 2 times wider", width=2),
)
_SHARED_BY_OTHERS = (
    _trial("Packed-Ensembles, 4 members, alpha 2", "packed_ensemble", branches=4),
    _trial("BatchEnsemble, 4 members", "batch_ensemble", branches=4),
)
_LATE = _trial("K=4 from the third stage on, joint", "late_branches", branches=4)
_K4_BRANCHES = _trial("K=4, branches, probability", branches=4, **_HOW["branches"])
_OTHERS = (
    *_LONGER,
    _FOUR_MIRRORED,
    _BRANCHES_MIRRORED,
    _HALF_MIRRORED,
    _ALIKE,
    *_ALIKE_CHOICES,
    _TUNED,
    *_TAUGHT,
    *_ENSEMBLES,
    *_WIDER,
    *_SHARED_BY_OTHERS,
    *CHOICES,
    *_DENSE_NARROW,
    _LATE,
    _K4_BRANCHES,
    _K8,
)
ROWS = (*_FIRST, *_OTHERS)
"""Those of narrow networks. Of the whole ones, which take three times as long, and with few pictures fewer."""

WHOLE = (_PLAIN, K2)
FEW = (
    *_FIRST,
    _K8,
    _HALF_MIRRORED,
    _ALIKE,
    *_LONGER,
    *_LONG_OF_FEW,
    _TAUGHT[0],
    *_ENSEMBLES,
    _ENSEMBLE_MIRRORED,
    *_WIDER[1:],
    _DENSE,
    *_DENSE_NARROW,
    _SHARED_BY_OTHERS[0],
)
# What is taken from another one's training comes after it, so that no process waits.
_BEFORE_OTHERS = (
    _PLAIN_AVERAGED,
    _K2_AVERAGED,
    _PLAIN,
    _TWICE,
    _TWICE_CASCADE,
    _K4_AVERAGED,
    K2,
    _K4,
    *_ENSEMBLES,
    _ENSEMBLE_MIRRORED,
    *_WIDER[:2],
)
_BY_TURN = (*_BEFORE_OTHERS, _TAUGHT[0], *(row for row in ROWS if row is not _TAUGHT[1]), _TAUGHT[1], *_LONG_OF_FEW)
_ORDER = list(dict.fromkeys(_BY_TURN))
_SEEDS_OF_OTHERS = 3
_REFERENCES = (_PLAIN_AVERAGED, _PLAIN)
_ALL_SEEDS = (*_REFERENCES, _TWICE, _TWICE_CASCADE, _JOINT_MIRRORED)
_ALL_SEEDS_OF_FEW = (*_REFERENCES, _K2_AVERAGED, K2)
# What a first seed ruled out, or what takes hours.
_ONE_SEED = (
    *_LONG_OF_FEW,
    *_ALIKE_CHOICES,
    _TUNED,
    _ENSEMBLE_MIRRORED,
    *_SHARED_BY_OTHERS,
    *(row for row in CHOICES if row not in _LOOKED_BETTER),
    *_DENSE_NARROW,
    _LATE,
    _K4_BRANCHES,
    _K8,
)


def rows_of(plan: Plan) -> Iterator[tuple[Row, tuple[int, ...]]]:
    """Yield the rows of the plan with their seeds."""
    if plan.few:
        rows, many, one = FEW, _ALL_SEEDS_OF_FEW, _ONE_SEED
    elif plan.narrow:
        rows, many, one = ROWS, _ALL_SEEDS, (*_ONE_SEED, *_TAUGHT, _WIDER[2])
    else:
        rows, many, one = WHOLE, (), ()
    for row in rows:
        if row.missing is None:
            yield row, plan.seeds if row in many else plan.seeds[: 1 if row in one else _SEEDS_OF_OTHERS]


def turn(pair: tuple[Row, int]) -> tuple[bool, int, int]:
    """Return when a training's turn is: what others are compared with, then the first seed of all others, and so on."""
    row, seed = pair
    return seed >= _SEEDS_OF_OTHERS, 0 if row in _BEFORE_OTHERS else 1 + seed, _ORDER.index(row)
