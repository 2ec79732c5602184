"""Programs that start at once: forks of a process in which everything is imported already.

Importing torch, torchvision and timm takes a processor several seconds, and most tests of the command line are about
what comes after. Tests of starting, of importing and of signals have processes of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_SERVER = """
import contextlib, json, os, sys, traceback

exec(sys.argv[1], {})
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the jobs are not for it
            for stream, name in ((1, job["out"]), (2, job["err"])):
                os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), stream)
            os.environ.update(job["environment"])
            os.chdir(job["folder"])
            sys.argv = job["arguments"]
            exec(compile(job["program"], "program", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):  # the program may have closed it
                    stream.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
EVERYTHING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import quick_exports
sys.path.pop(0)
import matplotlib.pyplot, onnxruntime, onnxscript, sklearn.datasets, timm, torch, torch.onnx, torchvision
import ccnn_zoo.analysis, ccnn_zoo.cli, ccnn_zoo.demo, ccnn_zoo.detection, ccnn_zoo.export, ccnn_zoo.hub, ccnn_zoo.train
from ccnn_zoo import runtime
"""


class Forks:
    """A process that has imported something, and runs each program in a fork of itself.

    Args:
        imports: Python, executed once.
        environment: that of the process.
    """

    def __init__(self, imports: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(self.close)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def run(
        self, program: str, arguments: Sequence[object] = (), folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments and these variables more, in ``folder`` or here; return how it ended."""
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            command = ["ccnn", *map(str, arguments)]
            job = {
                "program": program,
                "arguments": command,
                "folder": str(folder or os.getcwd()),
                "environment": environment,
                "out": str(out),
                "err": str(err),
            }
            print(json.dumps(job), file=self._process.stdin, flush=True)
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())


@cache
def _with_everything() -> Forks:
    return Forks(EVERYTHING, os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "MPLBACKEND": "agg"})


def python(
    program: str, *arguments: object, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program offline, where everything is imported."""
    return _with_everything().run(program, arguments, folder, **environment)


def ccnn(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``ccnn``, offline and 200 columns wide."""
    return python("from ccnn_zoo.cli import main\nmain()", *arguments, folder=folder, **environment)
