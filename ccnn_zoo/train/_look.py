"""Looking at all pictures before the first epoch, so that none ends a run that has begun."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ccnn_zoo._printable import printable
from ccnn_zoo.errors import ConfigurationError, ImageError

from ._data import Data
from ._images import ArrayImages

_TOLD = 50
"""Unreadable pictures that a message names."""
_AT_ONCE = 64
"""Pictures that a thread looks at before it takes others."""


def only_readable(data: Data, *, skip: bool, shown: bool) -> Data:
    """Look at the header of every picture of the data, in threads; of several processes each looks at its share.

    Args:
        data: whose pictures may be files.
        skip: leave out what cannot be read, with a warning that names it, instead of refusing the data.
        shown: show a bar on stderr where that is a terminal.

    Returns:
        the data, without unreadable pictures.

    Raises:
        ImageError: pictures or folders cannot be read and are not to be skipped; names them.
        ConfigurationError: without them a class has no training picture, or there is no test picture.
    """
    parts = (data.train, data.test)
    share = [_share(images) for images in parts]
    with _bar(sum(map(len, share)), shown=shown and PartialState().is_main_process) as advance:
        found = [_unreadable(images, mine, advance) for images, mine in zip(parts, share, strict=True)]
    problems = [dict(sorted(gather_object(mine))) for mine in found]
    told = [*data.left_out.unsearched, *problems[0].values(), *problems[1].values()]
    if not told:
        return data
    listed = [*told[:_TOLD], *([f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else [])]
    if not skip:
        raise ImageError(
            f"{len(told)} pictures or folders of {data.name} cannot be used; mend or remove them, or leave them out "
            "with skip_unreadable=true (ccnn train --skip-unreadable):",
            *listed,
        )
    if PartialState().is_main_process:
        text = "\n  ".join(map(printable, [f"{len(told)} pictures or folders of {data.name} left out:", *listed]))
        warnings.warn(text, stacklevel=4)
    train, test = (images.subset(_others(images, bad)) for images, bad in zip(parts, problems, strict=True))
    _check_classes(data, train.targets, test.targets)
    return replace(data, train=train, test=test)


def _check_classes(data: Data, train: Tensor, test: Tensor) -> None:
    had, left = set(data.train.targets.tolist()), set(train.tolist())
    if had != left:
        names = ", ".join(data.labels[target] for target in sorted(had - left))
        raise ConfigurationError(f"no training picture of {names} in {data.name} can be read; remove the class")
    if not len(test):
        raise ConfigurationError(f"no test picture of {data.name} can be read")


def _share(images: Any) -> Sequence[int]:
    """Return the indices of the pictures that this process looks at: none of those that are decoded already."""
    state = PartialState()
    count = 0 if isinstance(images, ArrayImages) else len(images)
    return range(state.process_index, count, state.num_processes)


def _unreadable(images: Any, indices: Sequence[int], advance: Any) -> list[tuple[int, str]]:
    """Return the index and what is wrong of the pictures that cannot be read."""

    def look(chunk: Sequence[int]) -> list[tuple[int, str]]:
        return [(index, problem) for index in chunk if (problem := _problem(images, index)) is not None]

    pool = ThreadPoolExecutor(thread_name_prefix="ccnn-look")  # what is waited for is the disk
    try:
        chunks = [indices[start : start + _AT_ONCE] for start in range(0, len(indices), _AT_ONCE)]
        found = []
        for chunk, problems in zip(chunks, pool.map(look, chunks), strict=True):
            found += problems
            advance(len(chunk))
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _problem(images: Any, index: int) -> str | None:
    try:
        images.look(index)
    except ImageError as error:
        return str(error)
    return None


def _others(images: Any, unwanted: dict[int, str]) -> np.ndarray:
    return np.setdiff1d(np.arange(len(images)), np.fromiter(unwanted, np.int64))


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = TextColumn("pictures looked at"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (shown and total and console.is_terminal)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
