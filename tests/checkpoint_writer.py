"""Saves checkpoints under adverse conditions, each in a child process of its own, for test_checkpoint.py.

Reads lines of JSON, [action, folder, arguments...], and answers each with the exit status of the child.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from types import FrameType

import timm
import torch

import ccnn_zoo._files
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint
from ccnn_zoo.errors import RepositoryError

torch.manual_seed(1)
MODEL = timm.create_model("ccnn_resnet18_cifar")


def save() -> None:
    save_checkpoint("last.safetensors", MODEL, TrainingRecord(data="writer", seed=1, epochs=1))


def be_killed_at(moment: int) -> None:
    """Die at the given call that the atomic writer makes, or return from one."""
    seen = 0

    def hook(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        if frame.f_code.co_filename == ccnn_zoo._files.__file__:
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)
    save()


def be_killed_after_bytes(size: int) -> None:
    """Die of the kernel's signal in the middle of writing the file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    save()


def fill_the_disk(size: int) -> None:
    """Fail to write more than ``size`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    must_be_refused("What was there before is kept")


def lack_permission() -> None:
    """Fail to make a file in the folder."""
    os.chmod(".", 0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write anywhere
    must_be_refused("cannot write last.safetensors")


def must_be_refused(remark: str) -> None:
    try:
        save()
    except RepositoryError as error:
        if remark in str(error):
            return
        raise
    sys.exit("the checkpoint was saved")


def run(action: str, folder: str, *arguments: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            globals()[action](*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(*json.loads(line)), flush=True)
