"""The runtime without torch, which the distribution ccnn-runtime installs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, distributions
from pathlib import Path

import numpy as np
import onnx
import pytest
from hub_network import published_folder
from light_site import PROJECT, REPOSITORY, RUNTIME, light_python, light_site
from onnx import TensorProto, helper, numpy_helper
from test_runtime import COLOURS, RGB, plain, probabilities_of, save_network

import ccnn_zoo
from ccnn_zoo.metadata import ModelMetadata

ONNXRUNTIME = next(name for name in ("onnxruntime-gpu", "onnxruntime") if [*distributions(name=name)])
CLASSIFY = "import sys; sys.argv[0] = 'ccnn'; from ccnn_zoo.cli import main; main()"
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
BARE = f"""
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {{"images": numpy.zeros((1, 3, 224, 224), numpy.float32)}})
{PEAK}
"""
OURS = f"""
import sys
from ccnn_zoo import runtime
classifier = runtime.load(sys.argv[1], device="cpu")
assert classifier.classify(sys.argv[2])[0].error is None
{PEAK}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """An environment after ``pip install ./ccnn-runtime``."""
    return light_site(tmp_path_factory.mktemp("light"), *RUNTIME["dependencies"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(COLOURS):
        plain(colour, (50, 40)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory) -> Path:
    """As many weights as ResNet-18 in convolutions of its sizes, without the time that an export takes."""
    generator = np.random.default_rng(0)
    nodes, weights, name = [], [], "images"
    channels, width = 3, 64
    for i, size in enumerate([64] * 5 + [128] * 4 + [256] * 4 + [512] * 4):
        stride = 2 if size != width or i < 2 else 1
        kernel = generator.standard_normal((size, channels, 3, 3), np.float32) * np.float32(0.05)
        weights.append(numpy_helper.from_array(kernel, f"kernel{i}"))
        nodes.append(helper.make_node("Conv", [name, f"kernel{i}"], [f"c{i}"], pads=[1] * 4, strides=[stride] * 2))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        name, channels, width = f"r{i}", size, size
    weights.append(numpy_helper.from_array(generator.standard_normal((512, 1000), np.float32), "head"))
    nodes.append(helper.make_node("ReduceMean", [name], ["features"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    labels = tuple(f"class {i}" for i in range(1000))
    metadata = ModelMetadata("network", 1, labels, (3, 224, 224), (0.5,) * 3, (0.25,) * 3, crop_pct=0.875)
    helper.set_model_props(model, metadata.to_props())
    path = tmp_path_factory.mktemp("resnet18") / "network.onnx"
    onnx.save(model, path)
    assert path.stat().st_size > 44e6
    return path


def test_the_runtime_works_where_nothing_else_is_installed(site, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))  # no network has been exported here before
    network = save_network(tmp_path / "network.onnx")
    run = light_python(site, CLASSIFY, "classify", pictures, "--model", network, "--json", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    for line, colour in zip(run.stdout.splitlines(), COLOURS, strict=True):
        top = json.loads(line)["predictions"][0]
        assert (top["label"], top["probability"]) == (
            RGB.labels[probabilities_of(colour).argmax()],
            pytest.approx(probabilities_of(colour).max(), rel=1e-5),
        )
    told = light_python(site, CLASSIFY, "--version")
    assert told.stdout == f"ccnn-runtime {ccnn_zoo.__version__}\n", told.stderr
    export = light_python(site, CLASSIFY, "export", "ccnn_resnet20_cifar", "--output", tmp_path / "x.onnx")
    assert export.returncode == 1
    assert 'is not installed: pip install "ccnn-zoo' in export.stderr
    assert len(export.stderr.splitlines()) == 1
    shipped = light_python(
        site, CLASSIFY, "classify", pictures, "--model", "ccnn_resnet18_cifar.mnist", "--device", "cpu"
    )
    assert "exported first, and the package" in shipped.stderr
    assert 'pip install "ccnn-zoo[export]". Or run `ccnn export' in shipped.stderr
    for name in ("torch", "timm", "onnx", "lazy_loader", "matplotlib"):
        assert light_python(site, f"import {name}").returncode == 1  # the folder is what it claims to be


def test_repositories_load_there_too(site, pictures):
    run = light_python(site, CLASSIFY, "classify", pictures / "0.png", "--model", published_folder(), "--device", "cpu")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{pictures / '0.png'}: ")


def test_without_typer_and_huggingface_hub_a_file_is_classified_all_the_same(tmp_path, pictures):
    (tmp_path / "site").mkdir()
    bare = light_site(tmp_path / "site", ONNXRUNTIME, "numpy", "pillow")
    network = save_network(tmp_path / "network.onnx")
    program = (
        "import sys; from ccnn_zoo import runtime\n"
        "print(runtime.load(sys.argv[1], device='cpu').classify(sys.argv[2])[0].label)"
    )
    run = light_python(bare, program, network, pictures / "0.png")
    assert run.stdout.strip() == RGB.labels[probabilities_of(COLOURS[0]).argmax()], run.stderr


def test_a_classifier_takes_at_most_40_mb_more_than_onnxruntime(site, resnet18, pictures):
    bare = int(light_python(site, BARE, resnet18).stdout)
    ours = int(light_python(site, OURS, resnet18, pictures / "0.png").stdout)
    assert bare > 120  # the network is in it
    assert ours - bare <= 40, (ours, bare)


def test_ccnn_runtime_requires_what_ccnn_zoo_does_but_for_what_builds_and_trains():
    def lines(found):
        return {re.sub(r"\s+", " ", line) for line in found}

    extras = PROJECT["optional-dependencies"]
    building = {line for line in PROJECT["dependencies"] if re.match("torch|timm|safetensors", line)}
    wanted = lines([*PROJECT["dependencies"], *extras["runtime"], *extras["cli"]]) - building
    assert lines(RUNTIME["dependencies"]) == wanted
    assert RUNTIME["requires-python"] == PROJECT["requires-python"]
    assert not RUNTIME["scripts"].keys() & PROJECT["scripts"].keys()  # one that is uninstalled would take the other's


def test_the_stub_and_the_package_name_the_same():
    stub = ast.parse((REPOSITORY / "ccnn_zoo" / "__init__.pyi").read_text())
    imported = {
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(ccnn_zoo.__all__)
    assert all(getattr(ccnn_zoo, name) is not None for name in ccnn_zoo.__all__)


@pytest.mark.slow
def test_a_fresh_environment_classifies_and_its_doctor_sees_the_shadowed_wheel(tmp_path, pictures):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python, ccnn = (tmp_path / "venv" / "bin" / name for name in ("python", "ccnn"))
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    packages = ["onnxruntime", "numpy", "pillow", "huggingface_hub", "typer"]
    subprocess.run([*pip, "-c", REPOSITORY / "constraints.txt", *packages], check=True)
    subprocess.run([*pip, "--no-deps", REPOSITORY], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}

    def run(*arguments: object) -> str:
        command = [ccnn, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout

    network = save_network(tmp_path / "network.onnx")
    for model in (network, published_folder()):
        assert run("classify", pictures / "0.png", "--model", model).startswith(f"{pictures / '0.png'}: ")
    cuda = next(f for f in json.loads(run("doctor", "--json"))["findings"] if f["backend"] == "cuda")
    assert "was built without CUDA" in cuda["reason"]
    if ONNXRUNTIME != "onnxruntime-gpu":
        return
    # What `pip install onnxruntime` over onnxruntime-gpu leaves: the metadata of both, the files of one.
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    metadata = Path(distribution("onnxruntime-gpu").locate_file(""))
    shutil.copytree(next(metadata.glob("onnxruntime_gpu-*.dist-info")), packages / "onnxruntime_gpu-1.dist-info")
    report = json.loads(run("doctor", "--json"))
    cuda = next(f for f in report["findings"] if f["backend"] == "cuda")
    assert "installed over 'onnxruntime-gpu'" in cuda["reason"]
    assert cuda["remedy"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")
    assert len(report["wheels"]) == 2


@pytest.mark.slow
def test_ccnn_runtime_runs_without_torch_and_gets_into_the_way_of_no_ccnn_zoo(tmp_path, pictures):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}

    def run(*command: object) -> str:
        command = [*map(str, command)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout

    def pip(*arguments: object) -> None:
        run(python, "-m", "pip", "-q", "--disable-pip-version-check", *arguments)

    def classifies_from() -> str:
        told = run(python, "-m", "ccnn_zoo", "classify", pictures / "0.png", "--model", network)
        assert told.startswith(f"{pictures / '0.png'}: ")
        file = Path(run(python, "-c", "import ccnn_zoo; print(ccnn_zoo.__file__)").strip())
        return str(file.parent.relative_to(site))

    network = save_network(tmp_path / "network.onnx")
    pip("install", "-c", REPOSITORY / "constraints.txt", REPOSITORY / "ccnn-runtime")
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    assert not any((site / name).exists() for name in ("torch", "timm", "onnx", "ccnn_zoo"))
    assert classifies_from() == "ccnn_runtime/ccnn_zoo"
    command = tmp_path / "venv" / "bin" / "ccnn-runtime"
    assert run(command, "classify", pictures / "0.png", "--model", published_folder()).startswith(f"{pictures}")
    assert run(command, "--version") == f"ccnn-runtime {ccnn_zoo.__version__}\n"

    pip("install", "--no-deps", REPOSITORY)
    assert classifies_from() == "ccnn_zoo"  # the whole one goes first
    pip("uninstall", "-y", "ccnn-zoo")
    assert classifies_from() == "ccnn_runtime/ccnn_zoo"
    pip("install", "--no-deps", REPOSITORY)
    pip("uninstall", "-y", "ccnn-runtime")
    assert classifies_from() == "ccnn_zoo"
