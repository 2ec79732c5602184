"""What `ccnn` prints where: closed streams, readers that leave, other encodings, narrow terminals, tables as JSON."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from fuzz_networks import METADATA, convolutions
from PIL import Image
from terminal import on_terminal

from ccnn_zoo.metadata import ModelMetadata

CCNN = Path(sys.executable).with_name("ccnn")
LABELS = ("mieć", "نمله", "😀", "dog")


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    model = convolutions()
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, ModelMetadata(**vars(METADATA) | {"labels": LABELS}).to_props())
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "שלום.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def ccnn(*arguments: object, closed: Sequence[int] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    return subprocess.run(
        [CCNN, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        preexec_fn=close,
    )


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_results_are_whole_whichever_streams_are_closed(network, pictures, tmp_path, closed):
    output = tmp_path / "r.csv"
    for _ in range(2):  # nothing is left that would be in the next run's way
        run = ccnn("classify", pictures, "--model", network, "--device", "cpu", "-o", output, closed=closed)
        assert run.returncode == 1, run.stderr  # one picture is broken
        assert "Traceback" not in run.stderr
        assert os.listdir(tmp_path) == ["r.csv"]
        with output.open(newline="", encoding="utf-8") as stream:
            assert [bool(row["error"]) for row in csv.DictReader(stream)] == [False, True, False]


def test_what_cannot_be_printed_is_an_error(network, pictures):
    good = pictures / "a.png"
    run = ccnn("classify", good, "--model", network, "--device", "cpu", closed=(1,))
    assert (run.returncode, run.stderr) == (
        1,
        "error: cannot write to standard output: it is closed. Redirect it to a file.\n",
    )
    run = ccnn("classify", good, "--model", network, "--device", "cpu", closed=(2,))
    assert (run.returncode, run.stdout.count("\n")) == (0, 1)
    with open("/dev/full", "w") as full:
        full_run = subprocess.run([CCNN, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert full_run.returncode == 1
    assert full_run.stderr.startswith("error: cannot write to standard output: No space left on device")


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(network, pictures, tmp_path):
    for number in range(2000):
        os.link(pictures / "a.png", tmp_path / f"{number}.png")
    command = [CCNN, "classify", tmp_path, "--model", network, "--device", "cpu", "--batch-size", "1"]
    child = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline().startswith(bytes(tmp_path))
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 141  # what a shell says of a command that SIGPIPE ended
    child.stderr.close()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_encoding_of_stdout_takes_every_name(network, pictures, encoding):
    run = subprocess.run(
        [CCNN, "classify", pictures, "--model", network, "--device", "cpu"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert b"Traceback" not in run.stderr
    said = run.stdout.decode(encoding)
    name = "שלום.png".encode(encoding, "backslashreplace").decode(encoding)
    assert f"{pictures / name}: " in said
    for label in LABELS:
        assert label.encode(encoding, "backslashreplace").decode(encoding) in said


def _tags() -> list[str]:
    """Return the tags of the shipped checkpoints of ``ccnn_resnet18_cifar``, as timm lists them, sorted."""
    import timm

    import ccnn_zoo  # noqa: F401

    return sorted(name.partition(".")[2] for name in timm.list_pretrained("ccnn_resnet18_cifar.*"))


def test_a_table_in_a_pipe_is_never_cut():
    import timm

    import ccnn_zoo  # noqa: F401

    run = ccnn("list", COLUMNS="20")
    rows = [line.split() for line in run.stdout.splitlines()[3:] if line.strip()]
    assert [row[0] for row in rows] == timm.list_models("ccnn*")
    tags = ", ".join(_tags()).split()
    assert tags in [row[-len(tags) :] for row in rows]
    assert "…" not in run.stdout
    assert all(line == line.rstrip() for line in run.stdout.splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("columns", [10, 20, 71, 200])
def test_a_narrow_terminal_cuts_nothing_either(columns):
    names = ("ccnn_resnet18", "ccnn_resnet18_cifar")
    shown = _on_terminal([CCNN, "list", "ccnn_resnet18*"], COLUMNS=str(columns))
    assert "…" not in shown
    assert set(names) <= set(shown.split())
    if columns in (10, 20, 200):  # where a cell is broken, its parts stand below each other
        assert ",".join(_tags()) in "".join(shown.split())


def _on_terminal(command: Sequence[object], **settings: str) -> str:
    """Run a command on a terminal of its own and return what it printed there, without styles."""
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb"} | settings
    status, said, _ = on_terminal(command, "stdout", stdin=subprocess.DEVNULL, env=environment)
    assert status == 0
    return said.decode()


def test_tables_are_json_too():
    run = ccnn("list", "ccnn_resnet18*", "--json", PYTHONIOENCODING="ascii")
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    assert rows.keys() == {"ccnn_resnet18", "ccnn_resnet18_cifar"}
    assert list(rows["ccnn_resnet18_cifar"]) == [
        "name", "branches", "trained_parameters", "folded_parameters", "macs", "input_size", "checkpoints",
    ]  # fmt: skip
    assert rows["ccnn_resnet18_cifar"]["checkpoints"] == _tags()
    assert rows["ccnn_resnet18"]["input_size"] == [3, 224, 224]


def test_the_module_is_the_command_and_both_know_their_version():
    from importlib.metadata import version

    run = ccnn("--version")
    assert (run.returncode, run.stdout) == (0, f"ccnn-zoo {version('ccnn-zoo')}\n")
    module = subprocess.run([sys.executable, "-m", "ccnn_zoo", "--version"], capture_output=True, text=True)
    assert (module.returncode, module.stdout) == (0, run.stdout)


def test_help_fits_narrow_terminals_and_poor_encodings():
    run = ccnn("classify", "--help", COLUMNS="20", PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert "--resume" in run.stdout
