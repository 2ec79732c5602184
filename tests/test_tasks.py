"""A task is an object: shared code asks it, and names none."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from detector_network import seeded_detector
from hub_network import trained_network
from onnx import TensorProto, helper
from torch import nn
from typer.testing import CliRunner

from ccnn_zoo import hub, runtime
from ccnn_zoo._tasks import TASKS
from ccnn_zoo.checkpoint import TrainingRecord, load_record, save_checkpoint
from ccnn_zoo.cli import app
from ccnn_zoo.detection import save_detector
from ccnn_zoo.errors import ConfigurationError, IntegrityError, MetadataError, RepositoryError
from ccnn_zoo.train import load_data

ROOT = Path(__file__).resolve().parents[1]
SHARED = [ROOT / "hub", ROOT / "export", *(ROOT / "ccnn_zoo" / room for room in ("cli", "runtime", "serve", "train"))]
# Drawing boxes is detection's own.
OWN = {"_drawing.py"}
RECORD = TrainingRecord(data="seeded", seed=0, epochs=1, metrics={"test_depth_percent": 1.5})


def _names(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
        elif isinstance(node, ast.Compare):
            found |= {str(c.value) for c in ast.walk(node) if isinstance(c, ast.Constant)}
    return found


def _shared_files() -> list[Path]:
    """Return the modules that serve all tasks: neither a task's own nor the list of a room's public names."""
    files = [file for folder in SHARED for file in sorted(folder.rglob("*.py"))]
    return [file for file in files if "detect" not in file.name and file.name not in OWN | {"__init__.py"}]


@pytest.mark.parametrize("file", _shared_files(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_shared_code_names_no_task(file):
    assert [name for name in _names(ast.parse(file.read_text())) if "detect" in name.lower()] == []


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("room", ["ccnn_zoo.hub", "ccnn_zoo.cli"])
def test_every_task_has_what_a_room_asks_of_it(room, task):
    wanted = import_module(f"{room}._parts").Part
    asked = {name for name in vars(wanted) if not name.startswith("_")} | set(wanted.__annotations__)
    assert asked <= set(dir(task.part(room)))
    assert callable(getattr(runtime, task.loader))
    assert CliRunner().invoke(app, [task.command, "--help"]).exit_code == 0
    room_of_trainer, _, trainer = task.trainer.rpartition(".")
    assert callable(getattr(import_module(room_of_trainer), trainer))


def _network() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "depth",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"task": "depth-estimation"})
    return model.SerializeToString()


@pytest.fixture
def depth(monkeypatch):
    """A third task, of which no file of the package knows: what each room asks of it is noted."""
    asked: list[tuple] = []
    task = replace(
        TASKS[0], name="depth", noun="depth estimator", property="depth-estimation", checkpoint="depth",
        metadata=nn.Module, loader="load_depth", command="measure", data=("nyu",), trainer="x.train_depth",
    )  # fmt: skip
    on_hub, commands = ModuleType("ccnn_zoo.hub._depth"), ModuleType("ccnn_zoo.cli._depth")

    def stage(staging, folder):
        for name in hub_files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(_network() if name.endswith("onnx") else b"{}")
        return {"task": "depth-estimation", "architecture": "depth", "branches": 1, "source": str(staging.source)}

    hub_files = ("config.json", "model.safetensors", "onnx/model.onnx")
    on_hub.owns = lambda network: isinstance(network, nn.Identity)
    on_hub.stage = stage
    on_hub.card = lambda folder, files, details, address: f"depth of {details['source']}".encode()
    commands.export = lambda request: asked.append(("export", request.found)) or []
    commands.beside = lambda checkpoint, precisions, data, pictures: asked.append(("beside", checkpoint)) or {}
    commands.SKIPS, commands.FIGURE = "skip_unreadable", ("test_depth_percent", "depth")

    def train(recipe, output, *, resume, tensorboard):
        asked.append(("train", recipe.data))
        return type("Result", (), {"record": RECORD, "checkpoint": output})

    commands.train = train
    for module in (on_hub, commands):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    TASKS.insert(0, task)
    yield asked
    TASKS.remove(task)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "depth.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata={"depth": "{}", "record": "{}"})
    return path


def test_a_new_task_is_published_by_its_own_part(depth, checkpoint, tmp_path):
    for source in (nn.Identity(), checkpoint):
        publication = hub.publish(source, f"local:{tmp_path}/there")
        assert publication.manifest.details["task"] == "depth-estimation"
        assert (tmp_path / "there" / "README.md").read_bytes() == f"depth of {source}".encode()


def test_commands_ask_a_new_task(depth, checkpoint, tmp_path):
    for arguments in (
        ["export", checkpoint, "-o", tmp_path / "x.onnx"],
        ["publish", checkpoint, f"local:{tmp_path}/there"],
        ["train", "--recipe", "digits", "--data", "nyu:here", "--output", tmp_path],
    ):
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert depth == [("export", checkpoint), ("beside", checkpoint), ("train", "nyu:here")]
    assert "test depth 1.50 %" in done.output


def test_what_is_of_a_new_task_is_refused_with_its_own_remedy(depth, tmp_path):
    (tmp_path / "depth.onnx").write_bytes(_network())
    with pytest.raises(MetadataError, match=r"is a depth estimator: .*runtime\.load_depth, or run `ccnn measure`"):
        runtime.load(tmp_path / "depth.onnx", device="cpu")
    with pytest.raises(ConfigurationError, match="train_depth takes nyu:FOLDER"):
        load_data("nowhere:else")


def test_the_record_of_a_checkpoint_is_read_whatever_its_task(tmp_path):
    save_detector(tmp_path / "a.safetensors", seeded_detector(), RECORD)
    save_checkpoint(tmp_path / "b.safetensors", trained_network(), RECORD)
    for name in ("a", "b"):
        assert load_record(tmp_path / f"{name}.safetensors") == RECORD
    (tmp_path / "c.safetensors").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="safetensors"):
        load_record(tmp_path / "c.safetensors")
    with pytest.raises(RepositoryError, match="no checkpoint"):
        load_record(tmp_path / "d.safetensors")
