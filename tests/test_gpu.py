"""The CUDA path: device tensors, streams, graphs, half precision, TensorRT. `scripts/check_gpu.py` runs all of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hub_network import SIZE, published_folder
from onnx import TensorProto, helper, numpy_helper

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.runtime import Cuda, TensorRT
from ccnn_zoo.runtime._torch import Torch

PROBLEM = Cuda().problem()
TENSORRT_PROBLEM = TensorRT().problem()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(PROBLEM is not None, reason=f"no CUDA: {PROBLEM}"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
METADATA = ModelMetadata("ccnn_test", 2, tuple("abcdefgh"), (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
SHAPE = (4, 3, 32, 32)
TOLERANCE = {"rtol": 1e-2, "atol": 1e-2}  # TensorFloat-32 and half precision keep ten bits of the mantissa
GPU = torch.device("cuda")


def write_network(path: Path, half: bool = False) -> Path:
    """A folded network in small; with ``half`` its convolutions and weights are fp16, input and logits are not."""
    rng = np.random.default_rng(3)
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    tensors = {
        "stem": rng.normal(size=(32, 3, 3, 3)) / 5,
        "branches": rng.normal(size=(32, 16, 3, 3)) / 12,
        "classifier": rng.normal(size=(32, 8)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["input"], to=kind),
            helper.make_node("Conv", ["input", "stem"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "branches"], ["c"], pads=[1, 1, 1, 1], group=2),
            helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("MatMul", ["e", "classifier"], ["f"]),
            helper.make_node("Cast", ["f"], ["logits"], to=TensorProto.FLOAT),
        ],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("gpu") / "network.onnx")


@pytest.fixture(scope="module")
def on_cpu(network) -> runtime.ImageClassifier:
    return runtime.load(network, device="cpu")


def batch(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_device_tensors_go_in_and_come_out_without_a_copy(network, on_cpu):
    classifier = runtime.load(network, device="cuda")
    images = batch(0).to(GPU)
    value, device, index = classifier._session._shared(images)
    assert (value.data_ptr(), device, index) == (images.data_ptr(), "cuda", images.get_device())
    (output,) = classifier._session.run_tensor(images).values()
    assert torch.from_dlpack(output).data_ptr() == output.data_ptr()
    logits = classifier.predict(images)
    assert isinstance(logits, torch.Tensor)
    assert logits.device.type == GPU.type
    np.testing.assert_allclose(logits.cpu(), on_cpu.predict(batch(0).numpy()), **TOLERANCE)


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_a_tensor_in_cpu_memory_runs_on_the_gpu_and_comes_back(network, on_cpu, cuda_graph, pinned):
    classifier = runtime.load(network, device=Cuda(cuda_graph=cuda_graph), batch_size=SHAPE[0])
    logits = classifier.predict(batch(1).pin_memory() if pinned else batch(1))
    assert logits.device.type == "cpu"
    np.testing.assert_allclose(logits, on_cpu.predict(batch(1).numpy()), **TOLERANCE)


def test_the_reference_brings_the_logits_to_the_tensors_memory():
    classifier = runtime.load(published_folder(), device=Torch("cuda"))
    images = torch.randn(4, *SIZE)
    for tensor in (images, images.to(GPU)):
        assert classifier.predict(tensor).device == tensor.device


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_tensor_is_taken_from_a_thread_whose_current_gpu_is_another(network, on_cpu):
    classifier = runtime.load(network, device=Cuda(device_id=1))
    with torch.cuda.device(0):
        logits = classifier.predict(batch(1).to("cuda:1"))
        with pytest.raises(ConfigurationError, match="batch lies on GPU 0, the network runs on GPU 1"):
            classifier.predict(batch(1).to("cuda:0"))
    np.testing.assert_allclose(logits.cpu(), on_cpu.predict(batch(1).numpy()), **TOLERANCE)


def test_a_network_on_the_cpu_refuses_a_gpus_tensor(on_cpu):
    with pytest.raises(ConfigurationError, match="lies on cuda, the network runs on cpu"):
        on_cpu.predict(batch(0).to(GPU))


@pytest.mark.parametrize("own_stream", [False, True], ids=["its own stream", "the user's stream"])
@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
def test_what_is_still_being_written_is_waited_for(network, on_cpu, own_stream, cuda_graph):
    session_stream, writing = torch.cuda.Stream(), torch.cuda.Stream()
    backend = Cuda(cuda_graph=cuda_graph, stream=session_stream.cuda_stream if own_stream else None)
    classifier = runtime.load(network, device=backend, batch_size=SHAPE[0])
    expected = on_cpu.predict(batch(2).numpy())
    source = batch(2).to(GPU)
    for _ in range(20):
        images = torch.zeros(SHAPE, device=GPU)
        torch.cuda.synchronize()
        with torch.cuda.stream(writing):
            torch.cuda._sleep(20_000_000)  # some 10 ms, in which a session that does not wait reads zeros
            images.copy_(source)
            logits = classifier.predict(images)
        np.testing.assert_allclose(logits.cpu(), expected, **TOLERANCE)


@pytest.mark.parametrize("conv_search", ["heuristic", "exhaustive", "default", "measure"])
def test_every_search_computes_the_same(network, on_cpu, conv_search):
    classifier = runtime.load(network, device=Cuda(conv_search=conv_search), batch_size=SHAPE[0])
    np.testing.assert_allclose(classifier.predict(batch(3).numpy()), on_cpu.predict(batch(3).numpy()), **TOLERANCE)


def test_options_arrive(network):
    stream = torch.cuda.Stream()
    session = runtime.load(network, device=Cuda(conv_search="exhaustive", stream=stream.cuda_stream))._session._session
    options = session.get_provider_options()["CUDAExecutionProvider"]
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert int(options["user_compute_stream"]) == stream.cuda_stream


def test_a_cuda_graph_replays_other_images_in_many_threads(network, on_cpu):
    classifier = runtime.load(network, device=Cuda(cuda_graph=True), batch_size=SHAPE[0])
    seeds = range(16)
    expected = [on_cpu.predict(batch(seed).numpy()) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda seed: classifier.predict(batch(seed).numpy()), seeds))
        tensors = list(pool.map(lambda seed: classifier.predict(batch(seed).to(GPU)).cpu(), seeds))
    for array, tensor, right in zip(arrays, tensors, expected, strict=True):
        np.testing.assert_allclose(array, right, **TOLERANCE)
        np.testing.assert_allclose(tensor, right, **TOLERANCE)
    # Batches of other sizes are filled or split.
    several = np.concatenate([batch(seed).numpy() for seed in (0, 1)])[:7]
    np.testing.assert_allclose(classifier.predict(several), on_cpu.predict(several), **TOLERANCE)


def test_several_sessions_run_in_several_threads(network, on_cpu):
    classifiers = [runtime.load(network, device="cuda") for _ in range(3)]
    seeds = range(30)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: classifiers[seed % 3].predict(batch(seed).to(GPU)).cpu(), seeds))
    for seed, logits in zip(seeds, found, strict=True):
        np.testing.assert_allclose(logits, on_cpu.predict(batch(seed).numpy()), **TOLERANCE)


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
def test_half_precision_files_run(tmp_path, on_cpu, cuda_graph):
    path = write_network(tmp_path / "half.onnx", half=True)
    classifier = runtime.load(path, device=Cuda(cuda_graph=cuda_graph), batch_size=SHAPE[0])
    np.testing.assert_allclose(classifier.predict(batch(4).numpy()), on_cpu.predict(batch(4).numpy()), **TOLERANCE)


def test_memory_stays_flat_over_many_runs(network):
    classifier = runtime.load(network, device="cuda")
    images = batch(0).to(GPU)
    for _ in range(20):
        classifier.predict(images)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(500):
        classifier.predict(images)
    torch.cuda.synchronize()
    assert free - torch.cuda.mem_get_info()[0] < 32 * 2**20


@pytest.mark.skipif(TENSORRT_PROBLEM is not None, reason=f"no TensorRT: {TENSORRT_PROBLEM}")
@pytest.mark.parametrize("fp16", [False, True])
def test_tensorrt_gives_the_cpus_answers(network, on_cpu, tmp_path, fp16):
    classifier = runtime.load(network, device=TensorRT(fp16=fp16, cache=tmp_path), batch_size=SHAPE[0])
    assert classifier.provider == "TensorrtExecutionProvider"
    images = batch(5)
    expected = on_cpu.predict(images.numpy())
    np.testing.assert_allclose(classifier.predict(images.numpy()), expected, **TOLERANCE)
    np.testing.assert_allclose(classifier.predict(images.to(GPU)).cpu(), expected, **TOLERANCE)
    engines = set(tmp_path.iterdir())
    np.testing.assert_allclose(classifier.predict(images.numpy()[:3]), expected[:3], **TOLERANCE)
    assert set(tmp_path.iterdir()) == engines, "fewer images are no new shape"
    assert any(tmp_path.iterdir())  # the engine is kept
