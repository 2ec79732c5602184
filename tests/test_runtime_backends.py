"""Backends: the built-in ones, onnxruntime's plugin providers, and those that other packages bring."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hub_network import SIZE, published_folder
from onnx import TensorProto, helper, numpy_helper
from test_runtime import RGB, save_network, weights
from test_runtime_shapes import network_of_pictures

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, DeviceError, IntegrityError
from ccnn_zoo.runtime import OpenOptions, Problem
from ccnn_zoo.runtime._backend import PROBE, PROBE_SHAPE
from ccnn_zoo.runtime._onnxruntime import session_options, work_on_cpu
from ccnn_zoo.runtime._plugin_provider import _devices

BATCH = np.random.default_rng(3).normal(size=(5, 3, 12, 10)).astype(np.float32)
LOGITS = BATCH.astype(float).mean(axis=(2, 3)) @ weights(RGB)
EXAMPLE = Path(__file__).with_name("example_backend")


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "network.onnx")


@pytest.fixture(scope="module")
def provider_library() -> str:
    return pytest.importorskip("nxrt_ep_cpu", reason="needs the plugin provider nxrt-ep-cpu").get_library_path()


def entry_point(folder: Path, name: str, target: str, code: str = "") -> None:
    """Install a module and its entry point as pip does: a folder of metadata beside it."""
    info = folder / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ccnn_zoo.runtimes]\n{name} = {target}\n")
    (folder / "other_package.py").write_text(code)


def test_the_probe_network_is_what_its_script_writes(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    try:
        from make_probe_network import network
    finally:
        sys.path.pop(0)
    assert onnx.load(PROBE) == network()
    kernel = numpy_helper.to_array(onnx.load(PROBE).graph.initializer[0])
    np.testing.assert_allclose(kernel.sum(axis=(1, 2, 3)), [1, -1], rtol=1e-6)


@pytest.mark.parametrize("backend", [runtime.Cpu(), runtime.OpenVino()], ids=lambda backend: type(backend).__name__)
def test_backends_that_are_installed_pass_their_probe(backend):
    """torch's is tried in tests/test_doctor.py."""
    if isinstance(backend, runtime.OpenVino):
        pytest.importorskip("openvino")
    assert backend.problem() is None
    backend.probe()


def test_a_backend_that_computes_something_else_fails_the_probe():
    class Wrong(runtime.Cpu):
        def open(self, path, options):
            session = super().open(path, options)
            right = session.run
            session.run = lambda batch: {name: 1.02 * value for name, value in right(batch).items()}
            return session

    with pytest.raises(DeviceError, match=r"CPUExecutionProvider computes .* where .* is right"):
        Wrong().probe()


def test_another_packages_backend_is_found_once_it_is_installed(tmp_path, network):
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)  # building leaves files behind
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True)
    np.save(tmp_path / "batch.npy", BATCH)
    program = f"""
import sys
sys.path.append({str(target)!r})
import numpy
from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError
try:
    runtime.check_device("none")
except ConfigurationError as error:
    assert "'reference')" in str(error), error
assert "onnx" not in sys.modules
classifier = runtime.load({str(network)!r}, device="reference")
assert (classifier.provider, classifier.device) == ("onnx.reference", "cpu")
numpy.save({str(tmp_path / "logits.npy")!r}, classifier.predict(numpy.load({str(tmp_path / "batch.npy")!r})))
assert len(classifier.classify([numpy.zeros((9, 9, 3), "uint8")] * 3)) == 3
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), LOGITS, atol=1e-5)
    with pytest.raises(ConfigurationError, match="'reference'"):  # here it is not installed
        runtime.load(network, device="reference")


@pytest.mark.parametrize(
    ("name", "target", "code", "message"),
    [
        ("other", "other_package:Gone", "", "'other' of other-package cannot be loaded: AttributeError"),
        ("other", "other_package:B", "import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
        ("other", "other_package:B", "B = dict", "is no ccnn_zoo.runtime.Backend but a dict"),
        ("other", "other_package:B", "def B(): raise OSError('no licence')", "cannot be loaded: OSError: no licence"),
    ],
    ids=["attribute", "import", "type", "constructor"],
)
def test_another_packages_broken_backend_is_named(tmp_path, monkeypatch, network, name, target, code, message):
    entry_point(tmp_path, name, target, code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other_package", raising=False)
    with pytest.raises(DeviceError, match=message):
        runtime.load(network, device="other")
    assert runtime.load(network, device="cpu").device == "cpu"


def test_no_other_package_can_take_a_built_in_name(tmp_path, monkeypatch, network):
    entry_point(tmp_path, "cpu", "other_package:B", "raise SystemExit('taken')")
    monkeypatch.syspath_prepend(tmp_path)
    assert runtime.load(network, device="cpu").provider == "CPUExecutionProvider"
    with pytest.raises(ConfigurationError) as caught:
        runtime.check_device("none")
    assert str(caught.value).count("'cpu'") == 1


def test_a_backends_problem_is_an_error_before_anything_is_downloaded():
    class Missing(runtime.Cpu):
        name = "missing"

        def problem(self):
            return Problem("libmissing.so is gone.", "pip install missing")

    with pytest.raises(DeviceError, match=r"missing cannot run: libmissing\.so is gone\. pip install missing\."):
        runtime.load("org/name", device=Missing())


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_openvino_gives_the_right_logits_in_many_threads(network, hint):
    pytest.importorskip("openvino")
    classifier = runtime.load(network, device=runtime.OpenVino(hint=hint), threads=1)
    assert (classifier.provider, classifier.device) == ("OpenVINO", "openvino")
    np.testing.assert_allclose(classifier.predict(BATCH), LOGITS, atol=1e-5)  # bfloat16 would miss by 1e-2
    batches = [np.roll(BATCH, i, axis=0) for i in range(5)]
    with ThreadPoolExecutor(4) as pool:
        for i, logits in enumerate(pool.map(classifier.predict, batches * 4)):
            np.testing.assert_allclose(logits, np.roll(LOGITS, i % 5, axis=0), atol=1e-5)


def test_openvino_names_files_that_it_cannot_read(tmp_path):
    pytest.importorskip("openvino")
    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["images"], ["logits"])],
        "odd",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *RGB.input_size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, RGB.to_props())
    onnx.save(model, tmp_path / "odd.onnx")
    for device in ("openvino", "cpu"):
        with pytest.raises(IntegrityError, match=r"odd\.onnx .*NoSuchOperator.*again"):
            runtime.load(tmp_path / "odd.onnx", device=device)


def test_openvino_refuses_to_resize(tmp_path):
    pytest.importorskip("openvino")
    onnx.save(network_of_pictures(), tmp_path / "pictures.onnx")
    with pytest.raises(DeviceError, match=r"OpenVINO resizes pictures otherwise than .*without --preprocess"):
        runtime.load(tmp_path / "pictures.onnx", device="openvino")


def test_torch_runs_the_trained_weights_as_onnxruntime_runs_their_export():
    folder = published_folder()
    reference, exported = (runtime.load(folder, device=device) for device in ("torch", "cpu"))
    assert (reference.provider, reference.device) == ("torch", "cpu")
    batch = np.random.default_rng(0).normal(size=(4, *SIZE)).astype(np.float32)
    np.testing.assert_allclose(reference.predict(batch), exported.predict(batch), atol=1e-4)
    config = json.loads((folder / "config.json").read_text())
    assert reference.metadata.architecture == config["architecture"]


def test_torch_refuses_an_export_without_its_weights(network):
    with pytest.raises(ConfigurationError, match=r"network\.onnx is only their export.*repository"):
        runtime.load(network, device="torch")


def fixed_network(path: Path) -> Path:
    """Mean and product with a fixed batch: the plugin provider takes it whole."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["features"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, *RGB.input_size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 6])],
        [numpy_helper.from_array(weights(RGB), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, RGB.to_props())
    onnx.save(model, path)
    return path


def test_a_plugin_provider_runs_from_the_path_that_the_user_names(provider_library, tmp_path, network):
    backend = runtime.PluginProvider(provider_library)
    assert backend.problem() is None
    for _ in range(2):  # the library is registered once in a process
        classifier = runtime.load(fixed_network(tmp_path / "fixed.onnx"), device=backend)
    assert (classifier.provider, classifier.device) == ("cpu_ep", "plugin")
    np.testing.assert_allclose(classifier.predict(BATCH), LOGITS, atol=1e-5)
    with pytest.raises(DeviceError, match=r"cpu_ep cannot run all of .*network\.onnx.*strict=False"):
        runtime.load(network, device=backend)  # it lacks GlobalAveragePool
    relaxed = runtime.load(network, device=runtime.PluginProvider(provider_library, strict=False))
    np.testing.assert_allclose(relaxed.predict(BATCH), LOGITS, atol=1e-5)


def test_what_is_no_plugin_provider_is_refused(tmp_path, network):
    with pytest.raises(ConfigurationError, match=r"library must be the path .*gone\.so"):
        runtime.PluginProvider(tmp_path / "gone.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(DeviceError, match=r"text\.so is no provider that onnxruntime .* can load"):
        runtime.load(network, device=runtime.PluginProvider(tmp_path / "text.so"))
    with pytest.raises(ConfigurationError, match="device must be one of"):
        runtime.load(network, device="plugin")  # a provider has no name, only a path


def test_options_name_the_usual_batch(network):
    seen = []

    class Seeing(runtime.Cpu):
        def open(self, path, options):
            seen.append(options)
            return super().open(path, options)

    runtime.load(network, device=Seeing(), batch_size=7, threads=2)
    assert seen == [OpenOptions((7, 3, 12, 10), "float32", 2)]
    assert Seeing().open(PROBE, OpenOptions(PROBE_SHAPE)).run(np.ones(PROBE_SHAPE, np.float32))["logits"].shape == (
        2,
        2,
    )


def test_work_that_is_left_to_the_cpu_is_seen(provider_library):
    def opened(*devices) -> ort.InferenceSession:
        options = session_options(1, recorded=True)
        if devices:
            options.add_provider_for_devices(devices, {})
        return ort.InferenceSession(PROBE, options)

    assert work_on_cpu(opened()) == ("Conv",)
    assert work_on_cpu(opened(_devices(Path(provider_library))[0])) == ()
