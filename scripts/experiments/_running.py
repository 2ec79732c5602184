"""Running cells: several in each of several processes, since importing torch and timm takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from ._cells import Cell, Record, Records, find, finish, key_of


def run_cells(
    cells: Sequence[Cell], place: Path, jobs: int, threads: int, run: bool = True, known: Records | None = None
) -> Records:
    """Finish all cells, and return their records.

    Args:
        cells: in the order in which they are begun.
        place: folder of their folders.
        jobs: processes; 1 is this one.
        threads: of torch, in each process.
        run: False returns the records of those that are finished.
        known: records of cells that were finished elsewhere.
    """
    wanted = {key_of(cell.settings()): cell for cell in cells}
    known = Records(()) if known is None else known
    # What was recorded first stays: a training that another cell needed again, elsewhere, is no better figure.
    done = [record for cell in wanted.values() if (record := known.get(cell) or find(cell, place))]
    finished = {key_of(record.settings) for record in done}
    left = [cell for key, cell in wanted.items() if run and key not in finished]
    print(f"{len(wanted)} cells, {len(done)} of them finished before", file=sys.stderr)
    way = _in_this_process if jobs == 1 or len(left) < 2 else _in_processes
    for number, record in enumerate(way(left, place, jobs, threads), start=1):
        print(f"[{number}/{len(left)}] {record.folder.name}", file=sys.stderr, flush=True)
        done.append(record)
    return Records(done)


def _in_this_process(cells: Sequence[Cell], place: Path, jobs: int, threads: int) -> Iterator[Record]:
    _set_threads(threads)
    for cell in cells:
        yield finish(cell, place)


def _in_processes(cells: Sequence[Cell], place: Path, jobs: int, threads: int) -> Iterator[Record]:
    spawn = multiprocessing.get_context("spawn")  # torch's threads and CUDA do not outlive a fork
    pool = ProcessPoolExecutor(min(jobs, len(cells)), spawn, _begin_worker, (threads,))
    try:
        for future in as_completed([pool.submit(finish, cell, place) for cell in cells]):
            yield future.result()
    finally:  # not `with`, which would run all that are left after the first error
        pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int) -> None:
    # A killed parent cannot tell its workers, which would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _set_threads(threads)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
