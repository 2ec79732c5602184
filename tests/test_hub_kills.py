"""Publishing to a folder that is killed at any step: readers see the old repository or the new one, never less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from serve_network import METADATA, save_network

from ccnn_zoo import hub, runtime
from ccnn_zoo._files import locks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks and kills")

# Every change of the file system raises an event of Python's audit hooks before it happens. A child publishes and
# kills itself at the event of a number, for all numbers until one child comes to its end. Meanwhile a reader loads
# whatever is there; after every child the next publication removes what it left.
PROGRAM = r"""
import ctypes, json, os, signal, sys, time, types
from pathlib import Path

first, second, target, exchange = sys.argv[1:]
if exchange == "no":
    ctypes.CDLL = lambda *_, **__: types.SimpleNamespace()  # a C library without renameat2

from ccnn_zoo import hub, runtime

place = str(Path(target).parent)

def forked(job):
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), flush=True)
            os._exit(1)
    return child

def publishing(number, signalled):
    # Publish in a child that sends itself a signal before the change of this number.
    left = number

    def count(event, arguments):
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in ("os.mkdir", "os.rename", "os.rmdir", "os.remove") or event.startswith("ctypes.dl") or writes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signalled)

    def job():
        sys.addaudithook(count)
        hub.publish(second, f"local:{target}")

    return forked(job)

def read_on():
    reader, writer = os.pipe()

    def job():
        os.set_blocking(reader, False)
        os.close(writer)
        reads = 0
        while True:
            labels = runtime.load(target, device="cpu").metadata.labels
            assert labels[0] in ("first", "second"), labels
            reads += 1
            try:
                os.read(reader, 1)
                break  # its end
            except BlockingIOError:
                pass
        print(json.dumps({"reads": reads}), flush=True)

    return forked(job), writer

def publish_first():
    hub.publish(first, f"local:{target}")

def wait_until_nothing_else_is_there():
    # A reader that met a publication between its two renames may hold the lock for another moment.
    left = 6000
    while os.listdir(place) != [Path(target).name]:
        left -= 1
        assert left, os.listdir(place)
        time.sleep(0.01)

assert os.waitpid(forked(publish_first), 0)[1] == 0
"""

KILLED = """
reading, end = read_on()
found, number, status = [], 0, signal.SIGKILL
while status == signal.SIGKILL:
    number += 1
    status = os.waitpid(publishing(number, signal.SIGKILL), 0)[1]
    found.append(runtime.load(f"local:{target}", device="cpu").metadata.labels[0])
    assert os.waitpid(forked(publish_first), 0)[1] == 0
    wait_until_nothing_else_is_there()
os.close(end)
assert os.waitpid(reading, 0)[1] == 0
print(json.dumps({"status": status, "found": found}))
"""

STOPPED = """
slow = publishing(8, signal.SIGSTOP)
try:
    assert os.WIFSTOPPED(os.waitpid(slow, os.WUNTRACED)[1])
    assert os.waitpid(forked(publish_first), 0)[1] != 0
    print(json.dumps({"holder": slow, "labels": runtime.load(target, device="cpu").metadata.labels[0]}), flush=True)
    os.kill(slow, signal.SIGCONT)
    assert os.waitpid(slow, 0)[1] == 0
except BaseException:
    os.kill(slow, signal.SIGKILL)
    raise
print(json.dumps({"labels": runtime.load(target, device="cpu").metadata.labels[0], "there": os.listdir(place)}))
"""


def repository(folder: Path, label: str) -> Path:
    """A small repository whose first label is ``label``, made without torch."""
    (folder / "onnx").mkdir(parents=True)
    labels = (label, *METADATA.labels[1:])
    save_network(folder / "onnx" / "model.onnx", metadata=replace(METADATA, labels=labels))
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(f"# {label}\n")
    hub.Manifest.of(folder, ("onnx/model.onnx", "model.safetensors", "config.json", "README.md"), {}).write(folder)
    return folder


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return repository(folder / "first", "first"), repository(folder / "second", "second")


@pytest.mark.parametrize("exchange", ["yes", "no"], ids=["in one step", "in two renames"])
def test_a_publication_killed_at_any_step_leaves_the_old_or_the_new_one(repositories, tmp_path, exchange):
    reader, publisher = run(KILLED, repositories, tmp_path, exchange)
    assert reader["reads"] > 1
    # Killed ever later: the old one for a while, then the new one; the last child was not killed.
    found = publisher["found"]
    assert publisher["status"] == 0
    assert found == sorted(found)
    assert {found.count("first") > 10, found.count("second") > 2} == {True}, found


def test_whoever_publishes_while_another_does_is_told_who_and_takes_nothing_away(repositories, tmp_path):
    refused, meanwhile, after = run(STOPPED, repositories, tmp_path, "yes")
    assert refused["error"].startswith("HeldError")
    assert f"process {meanwhile['holder']} on " in refused["error"]
    assert str(tmp_path / "hub" / "digits") in refused["error"]
    assert meanwhile["labels"] == "first"
    assert after == {"labels": "second", "there": ["digits"]}


def test_a_reader_that_puts_a_folder_back_refuses_no_publication(repositories, tmp_path, monkeypatch):
    target = tmp_path / "digits"
    hub.publish(repositories[0], f"local:{target}")
    reader = ExitStack()
    workshop = target.with_name(".digits.ccnn")
    reader.callback(workshop.rmdir)  # the last thing that a reader does
    reader.enter_context(locks.held(workshop / "lock", "it"))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        reader.close()

    monkeypatch.setattr(locks.time, "sleep", wait)
    hub.publish(repositories[1], f"local:{target}")
    assert len(waits) == 1
    assert runtime.load(f"local:{target}", device="cpu").metadata.labels[0] == "second"


def run(program: str, repositories: tuple[Path, Path], folder: Path, exchange: str) -> list[dict[str, object]]:
    command = [sys.executable, "-c", PROGRAM + program, *repositories, folder / "hub" / "digits", exchange]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(map(json.loads, done.stdout.splitlines()))
