"""Trains in child processes that are killed without warning, for test_resume.py; importing torch is paid once.

Reads lines of JSON, [recipe file, output folder, seconds or null], and answers each with the child's exit status.
The child resumes what is in the folder; with seconds, it is killed so long after its first step could begin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback

from ccnn_zoo.train import Recipe, train


def run(recipe: str, output: str, seconds: float | None) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        try:
            train(Recipe.from_yaml(recipe), output, resume=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as stderr:
        if seconds is not None and "after step" in stderr.readline():
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        sys.stderr.write(stderr.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(*json.loads(line)), flush=True)
