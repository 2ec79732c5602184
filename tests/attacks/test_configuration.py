"""No configuration of a checkpoint or repository makes loading reach out, build without bound, or raise at will."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import yaml
from closed import closed
from hub_network import published_folder, trained_network
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import ccnn_zoo
from ccnn_zoo import analysis, hub, runtime
from ccnn_zoo._files.sealed import write_sealed
from ccnn_zoo.checkpoint import TrainingRecord, config_json, load_repository, save_checkpoint
from ccnn_zoo.cli import app
from ccnn_zoo.detection import create_detector, detector_config, load_detector, save_detector
from ccnn_zoo.errors import ConfigurationError, IntegrityError, MetadataError
from ccnn_zoo.train import Recipe, train

RECIPE = {"model": "ccnn_resnet18_cifar", "data": "digits", "epochs": 1, "branches": 2}
SMALL = {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4)}
RECORD = {"data": "digits", "seed": 0, "epochs": 1, "recipe": RECIPE, "metrics": {}, "versions": {}}


def test_no_value_of_any_argument_of_timm_or_torchvision_reaches_out():
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("loading_child.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    results = json.loads(child.stdout)
    assert results.pop("control") == ["Forbidden", "Forbidden"]
    assert len(results.pop("control_noted")) == 2
    assert len(results) > 1000
    assert {name: each["noted"] for name, each in results.items() if each["noted"]} == {}
    # A file without a configuration may be whole: it is for `load_checkpoint(path, into=network)`.
    assert results.pop("config={}")["outcome"] == "ConfigurationError"
    assert {each["outcome"] for each in results.values()} == {"loaded", "IntegrityError"}
    assert not any(each["outcome"] == "loaded" for name, each in results.items() if name.startswith("the issue's"))


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, object]:
    """Arguments that let timm fetch a file from an address and keep it in a folder of its author's choice."""
    (tmp_path / "evil.pth").write_bytes(b"x")
    (tmp_path / "site").mkdir()
    overlay = {"url": f"file://{tmp_path}/evil.pth", "hf_hub_id": None, "file": None, "architecture": "x"}
    return {"pretrained": True, "cache_dir": str(tmp_path / "site"), "pretrained_cfg_overlay": overlay}


@pytest.fixture
def checkpoint(tmp_path: Path, planted: dict[str, object]) -> Path:
    network = trained_network(branches=2)
    config = json.loads(config_json(network))
    config["model_args"] |= planted
    path = tmp_path / "evil.safetensors"
    write_sealed(path, network.state_dict(), {"config": json.dumps(config), "record": json.dumps(RECORD)})
    return path


def _export(checkpoint: Path, out: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(out)])
    raise result.exception


DOORS: dict[str, Callable[[Path, Path], object]] = {
    "export": _export,
    "publish": lambda checkpoint, out: hub.publish(checkpoint, f"local:{out}"),
    "analyze": analysis.analyze,
    "start_from": lambda checkpoint, out: train(Recipe(**RECIPE, start_from=str(checkpoint)), out, progress=False),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_checkpoint_cannot_plant_a_file_through_any_door(tmp_path, checkpoint, door):
    with pytest.raises(IntegrityError, match=r"evil\.safetensors"):
        DOORS[door](checkpoint, tmp_path / "out")
    assert list((tmp_path / "site").iterdir()) == []


def test_a_repository_cannot_plant_a_file_through_torch(tmp_path, planted):
    folder = shutil.copytree(published_folder(), tmp_path / "repository")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] |= planted
    _rewrite(folder, json.dumps(config))
    with pytest.raises(IntegrityError, match="may not hold"):
        runtime.load(folder, device="torch")
    with pytest.raises(IntegrityError, match="may not hold"):
        load_repository(hub.download(f"local:{folder}"))
    assert list((tmp_path / "site").iterdir()) == []


@pytest.mark.parametrize("where", ["backbone_kwargs", "top"])
def test_a_detector_cannot_plant_or_open_a_file(tmp_path, planted, where):
    detector = create_detector("ccnn_resnet18", num_classes=2, backbone_kwargs=SMALL, representation_size=4)
    config = detector_config(detector)
    if where == "top":
        config["backbone_weights"] = str(tmp_path / "evil.pth")
    else:
        config["backbone_kwargs"] = {**SMALL, **planted}
    path = tmp_path / "evil.safetensors"
    write_sealed(path, detector.state_dict(), {"detector": json.dumps(config), "record": json.dumps(RECORD)})
    with pytest.raises(IntegrityError, match="may not hold"):
        load_detector(path)
    assert list((tmp_path / "site").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"branches": 10**6},
        {"branches": True},
        {"num_classes": 10**12},
        {"in_chans": 10**9},
        {"layers": [10**6, 1, 1, 1]},
        {"layers": [1000, 1000, 1000, 1000]},
        {"channels": [10**9] * 4},
        {"diversity": float("nan")},
        {"drop_rate": "http://127.0.0.1/"},
        {"output_stride": True},
    ],
    ids=str,
)
def test_what_a_repository_gives_timm_is_refused_before_anything_is_built(arguments):
    """As timm hands the ``model_args`` of ``hf-hub:`` and ``local-dir:`` to the network."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        timm.create_model("ccnn_resnet18", **arguments)


def test_a_network_larger_than_its_file_is_not_built(tmp_path):
    network = trained_network(branches=2)
    config = json.loads(config_json(network))
    config["model_args"] |= {"channels": [65_536] * 4, "branches": 256}  # petabytes
    path = tmp_path / "large.safetensors"
    write_sealed(path, network.state_dict(), {"config": json.dumps(config), "record": json.dumps(RECORD)})
    with pytest.raises(IntegrityError, match="differ in name or shape"):
        ccnn_zoo.checkpoint.load_checkpoint(path)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    network = timm.create_model("ccnn_resnet18_cifar", channels=(4, 4, 4, 4), block_reduce_first=1, num_classes=2)
    network._model_args["scale_by_keep"] = True
    with pytest.raises(ConfigurationError, match="scale_by_keep"):
        save_checkpoint(tmp_path / "a.safetensors", network, TrainingRecord(data="x", seed=0, epochs=1))
    assert list(tmp_path.iterdir()) == []


OTHERS = ("folder:{}", "wds/{}", "hfds/{}", "mnist:{}", "cifar10:{}", "voc:{}", "coco:{}", "hfds/evil/x", ["digits"], 1)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A folder of pictures, of any data set's layout."""
    for part, digit in itertools.product(("train", "test"), "01"):
        (tmp_path / "secret" / part / digit).mkdir(parents=True)
        Image.new("L", (10, 12)).save(tmp_path / "secret" / part / digit / "a.png")
    return tmp_path / "secret"


def _training_folder(folder: Path, data: object, network: nn.Module | None = None) -> Path:
    """Write what `ccnn train` leaves: a checkpoint, and a recipe that says the same."""
    network = network or trained_network(branches=2)
    recipe = {**RECIPE, "data": data}
    folder.mkdir()
    save_checkpoint(folder / "last.safetensors", network, TrainingRecord(data="x", seed=0, epochs=1, recipe=recipe))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_a_checkpoint_does_not_choose_what_is_opened(tmp_path, canary):
    network = trained_network(branches=2)
    for number, value in enumerate(OTHERS):
        data = value.format(canary) if isinstance(value, str) else value
        folder = _training_folder(tmp_path / str(number), data, network)
        said = rf"{folder}\S* was trained on {re.escape(repr(data))}, .*name it: --data "
        with closed(canary, may_write=True) as noted:
            with pytest.raises(ConfigurationError, match=said):
                analysis.analyze(folder, tmp_path / "out")
            result = CliRunner().invoke(app, ["export", str(folder), "-p", "int8", "-o", str(tmp_path / "x.onnx")])
            assert isinstance(result.exception, ConfigurationError)
            assert re.search(said, str(result.exception))
        assert noted == []


@pytest.mark.parametrize("command", [["export", "-o", "{}/x.onnx"], ["publish", "local:{}/hub"]], ids=lambda c: c[0])
def test_what_can_go_on_without_the_data_of_a_checkpoint_says_so(tmp_path, canary, command):
    folder = _training_folder(tmp_path / "run", f"folder:{canary}")
    first, *rest = command
    line = [first, str(folder), *(each.format(tmp_path) for each in rest)]
    with closed(canary, may_write=True) as noted:
        result = CliRunner().invoke(app, line, catch_exceptions=False)
    assert (result.exit_code, noted) == (0, [])
    assert (
        f"compared on seeded pictures only: {folder}/last.safetensors was trained on 'folder:{canary}'" in result.stderr
    )


def test_a_detector_does_not_choose_what_is_opened(tmp_path, canary):
    detector = create_detector("ccnn_resnet18", num_classes=2, backbone_kwargs=SMALL, representation_size=4)
    path, recipe = tmp_path / "evil.safetensors", {"data": f"voc:{canary}"}
    save_detector(path, detector, TrainingRecord(data="x", seed=0, epochs=1, recipe=recipe))
    with closed(canary, may_write=True) as noted:
        result = CliRunner().invoke(app, ["export", str(path), "-o", f"{tmp_path}/d.onnx"])
    assert noted == []
    assert f"seeded pictures only: {path} was trained on 'voc:{canary}'" in result.stderr
    assert isinstance(result.exception, MetadataError)  # it goes on, to what is missing: names of the kinds


def test_training_refuses_at_its_start_what_its_checkpoint_could_not_hold(tmp_path):
    with pytest.raises(ConfigurationError, match="cache_dir"):
        train(Recipe(**RECIPE, model_kwargs={"cache_dir": "x"}), tmp_path / "run", progress=False)


def _rewrite(folder: Path, config: str) -> None:
    """Change ``config.json`` as its author would: manifest and all."""
    (folder / "config.json").write_text(config)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = config.encode()
    manifest["files"]["config.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
