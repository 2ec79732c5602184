"""Trains in child processes, some killed without warning, for test_resume.py and test_parallel.py.

Importing torch is paid once: the server reads lines of JSON and forks. Each line holds recipe file, output folder,
number of processes, and either null or [rank, signal, seconds]: the signal that one of them gets so long after its
first step could begin. The answer is the list of exit statuses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import free_port


class TrainingServer:
    """This file as a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(
        self,
        recipe: Path,
        output: Path,
        *,
        processes: int = 1,
        signalled: tuple[int, signal.Signals, float] | None = None,
    ) -> list[int]:
        """Resume the run in ``output``; return the exit status of every rank, below 0 if a signal ended it."""
        self._process.stdin.write(json.dumps([str(recipe), str(output), processes, signalled]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def serving() -> Iterator[TrainingServer]:
    server = TrainingServer()
    try:
        yield server
    finally:
        server.stop()


def run(recipe: str, output: str, processes: int, signalled: tuple[int, int, float] | None) -> list[int]:
    port = free_port()
    reader, writer = os.pipe()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            train_as(rank, processes, port, recipe, output)
        children.append(child)
    os.close(writer)
    with open(reader, encoding="utf-8") as stderr:
        if signalled is not None:
            rank, number, seconds = signalled
            if any("goes on" in line or "to go on" in line for line in stderr):
                time.sleep(seconds)
                os.kill(children[rank], number)
        sys.stderr.write(stderr.read())
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train_as(rank: int, processes: int, port: int, recipe: str, output: str) -> None:
    """Train as torchrun's workers do, and exit."""
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trace: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        trace.extend(p.detach().clone() for group in optimizer.param_groups for p in group["params"])

    try:
        register_optimizer_step_post_hook(note)
        train(Recipe.from_yaml(recipe), output, resume=True)
        safetensors.torch.save_file({str(i): t for i, t in enumerate(trace)}, Path(output, f"rank{rank}.trace"))
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        os._exit(128 + stopped.signal)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    import safetensors.torch
    import sklearn.datasets  # noqa: F401, the trainer imports it late, and each fork would do so anew
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from ccnn_zoo.errors import TrainingInterrupted
    from ccnn_zoo.train import Recipe, train

    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
