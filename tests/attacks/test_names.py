"""Names that command a terminal, forge lines or turn text around, sent through every command."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from fuzz_networks import METADATA, convolutions
from PIL import Image

from ccnn_zoo.cli import COMMANDS, main
from ccnn_zoo.errors import IntegrityError, MetadataError
from ccnn_zoo.metadata import DetectorMetadata, ModelMetadata

# Sets a title, clears the screen in two ways, turns the order, hides, is no UTF-8, is markup, and forges a line.
HOSTILE = (
    "gnp.\x1b]0;owned\x07\x1b[2J\x9b2J\u202eexe\u2066\u200b\ufeff\udcff[bold]x[link=http:]y\r\nerror: forged\u2028"
)
SHOWN = r"gnp.\x1b]0;owned\x07\x1b[2J\x9b2J\u202eexe\u2066\u200b\ufeff\xff[bold]x[link=http:]y\r\n"
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    name = HOSTILE.replace("\udcff", "")  # onnxruntime opens names in UTF-8 alone
    path = tmp_path_factory.mktemp("network") / f"{name}.onnx"
    onnx.save(convolutions(), path)
    return path


@pytest.fixture
def ccnn(capfd, monkeypatch) -> Callable[..., tuple[object, str]]:
    """Run a command in this process; return its exit code and all that it said."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ccnn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = "".join(capfd.readouterr())
        code = ended.value.code
        return (1, f"{said}{code}\n") if isinstance(code, str) else (code, said)

    return run


def assert_harmless(said: str) -> None:
    unseen = {char for char in said if not char.isprintable() and unicodedata.category(char) != "Zs"} - {"\n"}
    assert not unseen, f"{unseen!a} in {said!a}"
    assert not any(line.startswith("error: forged") for line in said.split("\n"))


CALLS: dict[str, list[list[str]]] = {
    "demo": [["--device", HOSTILE]],
    "train": [["--recipe", HOSTILE], ["--data", f"folder:{HOSTILE}"], ["--model", HOSTILE], ["--set", HOSTILE],
              ["--set", f"{HOSTILE}=1"], ["--output", f"file/{HOSTILE}"]],
    "ensemble": [[HOSTILE, "x", "-o", "x"], ["NETWORK", HOSTILE, "-o", "x"], [f"o/{HOSTILE}", "x", "-o", "x"]],
    "export": [[HOSTILE], [f"local:{HOSTILE}"], [f"o/{HOSTILE}"], ["x", "--size", HOSTILE],
               ["x", "--triton-set", HOSTILE]],
    "calibrate-confidence": [[HOSTILE], [f"{HOSTILE}.onnx"], [f"{HOSTILE}.onnx", "--pictures", "x"],
                             ["NETWORK", "--pictures", HOSTILE]],
    "publish": [[HOSTILE, "local:x"], ["x", HOSTILE]],
    "download": [[HOSTILE], [f"local:{HOSTILE}"], [f"o/{HOSTILE}"], ["o/n", "--precision", HOSTILE]],
    "classify": [["x.png", "--model", HOSTILE], ["x.png", "--model", "o/n", "--device", HOSTILE],
                 ["x.png", "--model", "o/n", "-o", HOSTILE]],
    "detect": [["x.png", "--model", HOSTILE], ["x.png", "--model", "NETWORK"],
               ["x.png", "--model", "o/n", "-o", f"file/{HOSTILE}"]],
    "serve": [[HOSTILE], ["x", "--name", f"{HOSTILE}#"], ["NETWORK", "--host", HOSTILE]],
    "analyze": [[HOSTILE]],
    "web": [[HOSTILE], [f"local:{HOSTILE}"], [f"o/{HOSTILE}"], ["o/n", "--precision", HOSTILE],
            ["NETWORK", "--runtime", HOSTILE]],
    "doctor": [["--provider", HOSTILE]],
    "list": [[HOSTILE], ["--hub", f"o/{HOSTILE}"], ["--hub", HOSTILE]],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_commands_the_terminal(command, network, ccnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("ccnn_zoo.runtime.doctor.BUILT_IN", {"cpu": "ccnn_zoo.runtime._onnxruntime:Cpu"})
    (tmp_path / "file").write_text("is no folder")
    for arguments in [*CALLS[command], ["--nonsense", HOSTILE], [f"--{HOSTILE}"]]:
        code, said = ccnn(command, *[str(network) if each == "NETWORK" else each for each in arguments])
        assert code or command == "doctor", said
        assert "Traceback" not in said
        assert_harmless(said)
        if arguments in CALLS[command] and not arguments[0].startswith("x.png"):
            assert "gnp." in said, "it does not say which name is meant"


def test_pictures_and_networks_of_hostile_names_are_used_and_shown_escaped(network, ccnn, tmp_path):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / f"{HOSTILE}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    code, said = ccnn("classify", folder, "--model", network, "--device", "cpu")
    assert code == 1
    assert_harmless(said)
    assert said.count("\n") == 2
    assert said.count(r"gnp.\x1b]0;owned\x07\x1b[2J\x9b2J\u202eexe\u2066\u200b\ufeff\xff[bold]x[link=http:]y\r\n") == 3
    _, said = ccnn("classify", folder, "--model", network, "--device", "cpu", "--json")
    named = [json.loads(line)["source"] for line in said.splitlines() if line.startswith("{")]
    assert named == [str(folder / "broken.png"), str(folder / f"{HOSTILE}.png")], "JSON holds names as they are"


def test_names_in_any_script_stay_as_they_are(network, ccnn, tmp_path):
    names = ["שלום.png", "می‌خواهم.png", "👨‍👩‍👧.png", "C:\\new.png", "Ünïcödé 9.41\u202fAM.png", "日本語.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    _, said = ccnn("classify", tmp_path, "--model", network, "--device", "cpu")
    assert all(f"{tmp_path / name}: " in said for name in names)


def test_errors_and_warnings_are_harmless_for_whoever_prints_them(monkeypatch):
    assert_harmless(f"{IntegrityError(HOSTILE)}")
    assert str(MetadataError("a\nb")) == r"a\nb"
    assert str(MetadataError("two files:", "a\nerror: forged", "b")) == "two files:\n  a\\nerror: forged\n  b"
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # what main() changes is put back
    monkeypatch.setattr(sys, "argv", ["ccnn", "--version"])
    with pytest.raises(SystemExit):
        main()
    said = warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1)
    assert said.startswith("warning: gnp.")
    assert_harmless(said)


@pytest.mark.parametrize("char", [*DIRECTIONS, "\x1b", "\n", "\x9b", "\u2028", "\ud800"], ids=ascii)
def test_labels_that_turn_or_hide_text_are_refused(char):
    values = vars(METADATA)
    with pytest.raises(MetadataError, match="labels"):
        ModelMetadata(**values | {"labels": ("ant", f"b{char}ee")})
    with pytest.raises(MetadataError, match="labels"):
        DetectorMetadata("ccnn_resnet18", 2, (f"b{char}ee",), 96, 160)
    assert ModelMetadata(**values | {"labels": ("نمله", "می‌خواهم", "👨‍👩‍👧")}).labels


FORMULAS = ["=cmd|' C calc'!A0", "+1", "-1", "@eaDir", "\tx", "\rx", "\nx", " =1", "\u00a0=1", "\uff1d1"]


def test_no_cell_of_csv_is_a_formula_and_all_can_be_read_back(ccnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = ("=HYPERLINK(1)", "-dog", "'quoted", "plain")
    values = vars(METADATA) | {"labels": labels}
    model = convolutions()
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, ModelMetadata(**values).to_props())
    onnx.save(model, "n.onnx")
    names = sorted([f"{start}.png" for start in FORMULAS] + ["'=quoted.png", "''.png", "plain.png", "1-2=3.png"])
    for name in names:
        Image.new("RGB", (8, 8)).save(name)
    Path("=broken.png").write_bytes(b"")

    def classify(*output: str) -> None:
        code, said = ccnn(
            "classify", "--model", "n.onnx", "--device", "cpu", "-o", *output, "--", *names, "=broken.png"
        )
        assert code == 1, said  # one picture is broken

    for output in ("r.csv", "r.jsonl"):
        classify(output)
    expected = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    with open("r.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") and cell.lstrip()]
    assert not [cell for cell in cells if cell[:1] in tuple("\t\r\n")]
    found = [(row["source"].removeprefix("'"), row["label_1"].removeprefix("'")) for row in rows]
    assert found == [(r["source"], r["predictions"][0]["label"] if r["predictions"] else "") for r in expected]
    assert {row["label_4"].removeprefix("'") for row in rows if not row["error"]} <= set(labels)
    assert next(row for row in rows if row["source"] == "plain.png")

    part = Path("r.csv.part")  # a run that was interrupted goes on from the names as they are
    whole = Path("r.csv").read_bytes()
    remove, Path.unlink = Path.unlink, lambda self, missing_ok=False: None
    try:
        classify("r.csv")
    finally:
        Path.unlink = remove
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:6]))
    classify("r.csv", "--resume")
    assert Path("r.csv").read_bytes() == whole
    assert os.listdir().count("r.csv.part") == 0
