"""The command line, as a user runs it: in processes of their own."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forks import ccnn
from hub_network import published_folder
from made_once import made_once
from PIL import Image

from ccnn_zoo.cli import main
from ccnn_zoo.train import load_data

COMMANDS = ("demo", "train", "ensemble", "export", "publish", "download", "classify", "serve", "doctor", "list")


@pytest.fixture(scope="module")
def trained() -> Path:
    return made_once("command", _train)


def _train(folder: Path) -> None:
    changes = ["--epochs", 1, "--branches", 2, "--set", "lr=0.05", "--set", "model_kwargs={layers: [1, 1, 1, 1]}"]
    run = ccnn("train", "--recipe", "digits", *changes, "-o", folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("test error ")


@pytest.fixture(scope="module")
def repository() -> str:
    return f"local:{published_folder()}"


def test_every_command_explains_itself_with_an_example():
    def told(*arguments: str) -> str:
        run = ccnn(*arguments)
        assert run.returncode == 0, run.stderr
        return run.stdout

    overview = told("--help")
    for command in COMMANDS:
        assert f"  {command}" in overview
        page = told(command, "--help")
        assert f"\n  Example:  ccnn {command}" in page
        assert not re.search(r"\S.*Example:", page), "an example runs on behind another"


def test_options_override_the_recipe(trained):
    recipe = (trained / "recipe.yaml").read_text()
    assert {"epochs: 1", "branches: 2", "lr: 0.05"} <= set(recipe.splitlines())
    assert (trained / "history.csv").read_text().count("\n") == 2
    assert Image.open(trained / "curves.png").size[0] > 400


def test_export_says_what_it_checked(trained, tmp_path):
    run = ccnn("export", trained, "-o", tmp_path / "digits.onnx")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "digits.onnx").is_file()
    assert "12 Conv" in run.stdout
    assert re.search("same class as torch +on 100 % of 360 images", run.stdout)
    assert re.search(r"accuracy +\d+\.\d\d %, 0\.00 points less than torch", run.stdout)


def test_publishing_exports_the_precisions_that_are_asked_for(trained, tmp_path):
    folder = tmp_path / "digits"
    run = ccnn("publish", trained, f"local:{folder}", "--fp16", "--int8")
    assert run.returncode == 0, run.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    for precision, file in {"fp16": "model_fp16.onnx", "int8": "model_quantized.onnx"}.items():
        assert (folder / "onnx" / file).is_file()
        measured = manifest["further_exports"][precision]
        assert measured["images"] == 360
        assert measured["torch_accuracy"] == pytest.approx(100 - manifest["record"]["metrics"]["test_error_percent"])
        assert measured["accuracy_loss"] < 3
    assert manifest["further_exports"]["int8"]["int8_images"] == 512


def test_published_networks_classify_pictures_and_folders(repository, tmp_path):
    digits = load_data("digits").test
    for i in range(3):
        digits[i][0].save(tmp_path / f"{i}.png")
    run = ccnn("classify", tmp_path, tmp_path / "0.png", "--model", repository, "--device", "cpu", "--json")
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [Path(r["source"]).name for r in results] == ["0.png", "1.png", "2.png", "0.png"]
    assert results[0]["predictions"] == results[3]["predictions"]
    assert sum(p["probability"] for p in results[0]["predictions"]) == pytest.approx(1)  # five of five classes
    folder = repository.removeprefix("local:")
    run = ccnn("classify", tmp_path / "1.png", "--model", Path(folder, "onnx", "model.onnx"), "--top-k", 1)
    label = results[1]["predictions"][0]["label"]
    assert run.stdout.startswith(f"{tmp_path / '1.png'}: {label} ")


def test_a_broken_picture_is_named_and_the_others_are_classified(repository, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    run = ccnn("classify", tmp_path / "bad.png", tmp_path / "good.png", "--model", repository, "--device", "cpu")
    assert run.returncode == 1
    assert run.stdout.startswith(str(tmp_path / "good.png"))
    assert str(tmp_path / "bad.png") in run.stderr
    assert "Traceback" not in run.stderr


def test_classify_imports_neither_torch_nor_timm(repository, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    program = (
        "import sys; from ccnn_zoo.cli import app\n"
        f"app(['classify', {str(tmp_path / 'x.png')!r}, '--model', {repository!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'timm', 'onnx', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--branches", "0"], "branches must be an integer of at least 1 .*got 0"),
        (["train", "--recipe", "none"], "no recipe 'none'; packaged are .*digits"),
        (["train", "--set", "speed=9"], "unknown keys speed"),
        (["train", "--set", "lr"], "--set takes NAME=VALUE, got 'lr'"),
        (["train", "--set", "lr=["], r"--set lr=\[ is not YAML"),
        (["train", "--set", "lr=2020-99-99"], "--set lr=2020-99-99 is not YAML: month must be in"),
        (["train", "--data", "folder:/nowhere"], "/nowhere"),
        (["train", "--epochs", "1", "--output", "/proc/ccnn"], "cannot write .*/proc/ccnn"),
        (["export", "no-such-thing", "-p", "int9"], "precision must be one of .*int9"),
        (["export", "no-such-thing"], "no network found for 'no-such-thing'"),
        (["export", "runs/typo"], "there is no file or folder 'runs/typo' here, and on the Hub: runs/typo: "),
        (["publish", "no-such-thing", "local:x"], "no-such-thing"),
        (["download", "local:/no/such"], "/no/such"),
        (["download", "org/none"], "org/none"),
        (["classify", "x.png", "--model", "none.onnx"], "no network found for 'none.onnx'"),
        (["classify", "x.png", "--model", "a/b", "--device", "tpu"], "device must be one of .*tpu"),
        (["list", "nothing*"], "no network is called 'nothing[*]'"),
        (["demo", "--device", "tpu"], "device must be one of .*tpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line_that_names_them(arguments, message, tmp_path, monkeypatch):
    if "--output" not in arguments and arguments[0] in ("train", "demo"):
        arguments = [*arguments, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ccnn", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, str)  # which Python prints on stderr, with exit code 1
    assert "\n" not in caught.value.code
    assert re.match(f"error: .*{message}", caught.value.code), caught.value.code


def test_an_error_ends_with_exit_code_1_and_no_traceback():
    run = ccnn("download", "local:/no/such")
    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(r"error: .*/no/such.*\n", run.stderr)


@pytest.mark.parametrize("pattern", ["ccnn_resnet18*", pytest.param("*", marks=pytest.mark.slow)])
def test_list_shows_every_network_with_its_sizes(pattern):
    import timm

    import ccnn_zoo  # noqa: F401

    run = ccnn("list", pattern)
    assert run.returncode == 0, run.stderr
    for name in fnmatch.filter(timm.list_models("ccnn_*"), pattern):
        assert name in run.stdout
    row = next(line for line in run.stdout.splitlines() if "ccnn_resnet18 " in line)
    # Torchvision's ResNet-18 has 11,689,512 weights; a second branch adds 4,800 of batch normalisation, and R.
    assert row.split()[:4] == ["ccnn_resnet18", "2", "11.70", "22.87"]
