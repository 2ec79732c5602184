"""What a training shows on a terminal, seen through a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX's")


def test_a_terminal_shows_loss_error_speed_and_the_time_that_is_left(tmp_path):
    master, slave = pty.openpty()
    command = [Path(sys.executable).parent / "ccnn", "train", "--recipe", "digits", "--branches", "1", "--epochs", "6"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen([*command, "-o", tmp_path], stdout=subprocess.DEVNULL, stderr=slave, env=environment) as run:
        os.close(slave)
        shown = _read(master)
    assert run.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    line = (
        r"ccnn_resnet18_cifar K=1 (\d)/6 .* (\d+)/(\d+) "
        r"loss \d\.\d{3}, error \d+\.\d\d %.*, [\d,]+ images/s (\d:\d\d:\d\d|-:--:--)"
    )
    lines = [found.groups() for text in re.split(r"[\r\n]", plain) if (found := re.search(line, text))]
    assert {epoch for epoch, *_ in lines} >= {"2", "5"}
    assert all(int(done) <= int(steps) for _, done, steps, _ in lines)
    assert any(re.fullmatch(r"\d:\d\d:\d\d", left) for *_, left in lines)
    assert re.search(r"test \d+\.\d\d %", plain)


def _read(master: int) -> str:
    pieces = []
    try:
        while piece := os.read(master, 65536):
            pieces.append(piece)
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(master)
    return b"".join(pieces).decode()
