"""CUDA runs on CUDA or fails by name; only "auto" may fall back, and says so once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, DeviceError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.runtime import _nvidia

PROBLEM = runtime.Cuda().problem()
needs_cuda = pytest.mark.skipif(PROBLEM is not None, reason=f"no CUDA: {PROBLEM}")
needs_no_cuda = pytest.mark.skipif(PROBLEM is None, reason="CUDA works here")
METADATA = ModelMetadata("ccnn_test", 2, tuple("abcdefgh"), (3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folded network in small: convolution, grouped convolution, pooling, classifier."""
    rng = np.random.default_rng(3)
    tensors = {
        "stem": rng.normal(size=(32, 3, 3, 3)) / 5,
        "branches": rng.normal(size=(32, 16, 3, 3)) / 12,
        "classifier": rng.normal(size=(32, 8)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "stem"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "branches"], ["c"], pads=[1, 1, 1, 1], group=2),
            helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("MatMul", ["e", "classifier"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    path = tmp_path_factory.mktemp("devices") / "network.onnx"
    onnx.save(model, path)
    return path


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )


def test_unknown_devices_are_refused_before_anything_is_loaded():
    with pytest.raises(ConfigurationError, match=r"device must be one of .*'tpu'"):
        runtime.load("org/name", device="tpu")


def test_cpu_runs_on_the_cpu(network):
    classifier = runtime.load(network, device="cpu")
    assert (classifier.provider, classifier.device) == ("CPUExecutionProvider", "cpu")


@needs_no_cuda
def test_cuda_without_cuda_names_what_is_missing_and_prints_nothing(network, capfd):
    with pytest.raises(DeviceError) as caught:
        runtime.load(network, device="cuda")
    message = str(caught.value)
    assert re.search(r"lib\w+\.so\.\d+|nvcuda\.dll|CPU wheel|built without CUDA|no usable GPU", message)
    assert re.search(r"Install the NVIDIA driver|pip install|nvidia-smi", message)
    assert "device='cpu'" in message
    assert capfd.readouterr() == ("", "")


@needs_no_cuda
def test_cuda_is_refused_before_anything_is_downloaded():
    with pytest.raises(DeviceError):
        runtime.load("org/name", device="cuda")


@needs_no_cuda
@pytest.mark.parametrize("seen", [False, True])
def test_auto_falls_back_to_the_cpu_and_says_so_once_where_a_gpu_is_there(network, seen):
    run = python(f"""
from ccnn_zoo import runtime
runtime._registry.gpu_seen = lambda: {seen}  # one machine has a GPU or none
for _ in range(3):
    classifier = runtime.load({str(network)!r})
    assert (classifier.provider, classifier.device) == ("CPUExecutionProvider", "cpu")
""")
    assert run.stdout == ""
    assert run.stderr == (f"device='auto' runs on the CPU. CUDA cannot run: {PROBLEM}\n" if seen else "")


def test_a_gpu_is_seen_where_nvidias_is_on_the_bus_and_not_hidden(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(_nvidia, "gpu_name", lambda: None)  # the driver's answer, which is this machine's
    for number, (vendor, kind) in enumerate([("0x8086", "0x030000"), ("0x10de", "0x040300"), ("0x10de", "0x030200")]):
        assert not _nvidia.gpu_seen(tmp_path)  # Intel's graphics; the sound of NVIDIA's
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "vendor").write_text(f"{vendor}\n")
        (tmp_path / f"{number}" / "class").write_text(f"{kind}\n")
    assert _nvidia.gpu_seen(tmp_path)
    assert not _nvidia.gpu_seen(tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not _nvidia.gpu_seen(tmp_path)


@needs_no_cuda
@pytest.mark.parametrize(("seen", "level"), [(False, "INFO"), (True, "WARNING")])
def test_the_fallback_is_told_by_the_runtimes_logger(network, seen, level):
    run = python(f"""
import logging
logging.basicConfig(format="%(name)s %(levelname)s", level=logging.INFO)
from ccnn_zoo import runtime
runtime._registry.gpu_seen = lambda: {seen}
runtime.load({str(network)!r})
""")
    assert run.stderr.strip() == f"ccnn_zoo.runtime {level}"


def test_stdout_is_itself_again_after_two_threads_looked_for_libraries(monkeypatch):
    inside, first_is_out = threading.Event(), threading.Event()
    entered: list[str] = []

    def preload() -> None:
        """Without a lock the second comes while the first is here, and leaves after it."""
        entered.append("")
        if len(entered) == 1:
            inside.wait(0.2)
        else:
            inside.set()
            first_is_out.wait(0.2)

    def first() -> None:
        _nvidia.library_problem()
        first_is_out.set()

    monkeypatch.setattr(_nvidia.ort, "preload_dlls", preload)
    monkeypatch.setattr(_nvidia, "ctypes", SimpleNamespace(CDLL=lambda name: None))
    before = sys.stdout
    one, other = threading.Thread(target=first), threading.Thread(target=_nvidia.library_problem)
    one.start()
    while not entered:
        time.sleep(0.001)
    other.start()
    one.join()
    other.join()
    after, sys.stdout = sys.stdout, before
    assert len(entered) == 2
    assert after is before


def test_the_gpu_script_goes_on_where_one_way_fails(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    from check_gpu import measured

    runs = iter(range(100))

    def soon_out_of_memory() -> np.ndarray:
        if next(runs) == 4:
            raise RuntimeError("out of memory")
        return np.zeros(1)

    def never() -> np.ndarray:
        raise DeviceError("no engine")

    found = measured({"never": never, "soon": soon_out_of_memory, "works": lambda: np.ones(1)}, rounds=3)
    assert list(found) == ["works"]
    assert (found["works"][0], len(found["works"][1])) == (np.ones(1), 3)
    assert capsys.readouterr().err == "never: no engine\nsoon: out of memory\n"


@needs_no_cuda
def test_the_gpu_script_says_what_is_missing_and_writes_nothing(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "check_gpu.py"
    command = [sys.executable, script, "--output", tmp_path / "gpu.md"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == f"no GPU to check: {PROBLEM.reason}\nTo mend it:  {PROBLEM.remedy}\n"
    assert list(tmp_path.iterdir()) == []


def test_libraries_that_are_named_as_missing_really_are():
    """Run in a process of its own: it loads all of CUDA's libraries that there are."""
    python("""
import ctypes, re
from ccnn_zoo.runtime._nvidia import library_problem
problem = str(library_problem() or "")
names = re.findall(r"lib[\\w.]+\\.so[\\w.]*|\\w+\\.dll", problem.split(" cannot be loaded")[0])
assert bool(names) == bool(problem), problem
for name in names:
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    raise SystemExit(f"{name} can be loaded")
""")


@pytest.mark.gpu
@needs_cuda
def test_cuda_gives_the_cpus_answers(network):
    on_cpu, on_cuda = (runtime.load(network, device=device) for device in ("cpu", "cuda"))
    assert (on_cuda.provider, on_cuda.device) == ("CUDAExecutionProvider", "cuda")
    assert runtime.load(network).device == "cuda"
    batch = np.random.default_rng(0).normal(size=(9, 3, 32, 32)).astype(np.float32)
    # TensorFloat-32 keeps ten bits of the mantissa.
    np.testing.assert_allclose(on_cuda.predict(batch), on_cpu.predict(batch), rtol=1e-2, atol=1e-2)
    pictures = list(np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), np.uint8))
    for ours, theirs in zip(on_cuda.classify(pictures), on_cpu.classify(pictures), strict=True):
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-2)


@pytest.mark.gpu
@needs_cuda
def test_a_hidden_gpu_is_an_error(network):
    run = python(
        f"""
from ccnn_zoo import runtime
from ccnn_zoo.errors import DeviceError
try:
    runtime.load({str(network)!r}, device="cuda")
except DeviceError as error:
    print(error)
""",
        CUDA_VISIBLE_DEVICES="",
    )
    assert "no usable GPU" in run.stdout
    assert "CUDA_VISIBLE_DEVICES" in run.stdout
