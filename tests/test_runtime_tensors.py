"""Tensors of other libraries in and out through DLPack, and sessions with fixed buffers, as far as a CPU shows it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from test_runtime import RGB, onnx_network, save_network, weights

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, DeviceError
from ccnn_zoo.runtime import OpenOptions
from ccnn_zoo.runtime._cuda import GraphSession, measured

SHAPE = (4, *RGB.input_size)
BATCH = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def logits_of(batch: torch.Tensor) -> np.ndarray:
    return batch.double().mean(dim=(2, 3)).numpy() @ weights(RGB)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "network.onnx")


@pytest.fixture(scope="module")
def classifier(network) -> runtime.ImageClassifier:
    return runtime.load(network, device="cpu")


def test_a_tensor_goes_in_and_a_tensor_comes_out(classifier):
    logits = classifier.predict(BATCH)
    assert isinstance(logits, torch.Tensor)
    assert logits.device.type == "cpu"
    np.testing.assert_allclose(logits.numpy(), logits_of(BATCH), atol=1e-5)


def test_neither_way_is_a_copy(classifier):
    session = classifier._session
    value, device, _ = session._shared(BATCH[1:])
    assert (value.data_ptr(), device) == (BATCH[1:].data_ptr(), "cpu")
    (output,) = session.run_tensor(BATCH).values()
    address, expected = output.data_ptr(), output.numpy().copy()
    tensor = torch.from_dlpack(output)
    del output
    assert tensor.data_ptr() == address
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_library_without_from_dlpack_gets_onnxruntimes_value(classifier):
    class Foreign:
        shape = SHAPE

        def __dlpack__(self, stream=None):
            return BATCH.__dlpack__()

        def __dlpack_device__(self):
            return BATCH.__dlpack_device__()

    logits = classifier.predict(Foreign())
    assert isinstance(logits, ort.OrtValue)
    np.testing.assert_allclose(np.from_dlpack(logits), logits_of(BATCH), atol=1e-5)


@pytest.mark.parametrize("device", ["openvino", "cpu"])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (BATCH.double(), "takes float32 .*got a Tensor of float64"),
        (BATCH.clone().requires_grad_(), "detach"),
        (BATCH[:, :2], r"\(N, 3, 12, 10\).*\(4, 2, 12, 10\)"),
        (BATCH[0], r"\(3, 12, 10\)"),
        (BATCH[:0], "at least 1"),
    ],
    ids=["dtype", "gradient", "channels", "rank", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(network, device, tensor, message):
    if device == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ConfigurationError, match=message):
        runtime.load(network, device=device).predict(tensor)


def test_a_strided_tensor_is_refused_where_it_would_have_to_be_copied(classifier):
    with pytest.raises(ConfigurationError, match=r"cannot be shared .*contiguous"):
        classifier.predict(torch.randn(4, 3, 10, 12).transpose(2, 3))


def test_backends_without_device_buffers_take_tensors_too(network):
    pytest.importorskip("openvino")
    logits = runtime.load(network, device="openvino").predict(BATCH)
    assert isinstance(logits, torch.Tensor)
    np.testing.assert_allclose(logits.numpy(), logits_of(BATCH), atol=1e-5)


def test_a_fixed_batch_takes_tensors_of_that_size_only(tmp_path):
    onnx.save(onnx_network(RGB, batch=4), tmp_path / "fixed.onnx")
    classifier = runtime.load(tmp_path / "fixed.onnx", device="cpu")
    np.testing.assert_allclose(classifier.predict(BATCH).numpy(), logits_of(BATCH), atol=1e-5)
    with pytest.raises(ConfigurationError, match="exactly 4 images here, got 3"):
        classifier.predict(BATCH[:3])


def test_several_sessions_in_several_threads_keep_apart(network):
    classifiers = [runtime.load(network, device="cpu", threads=1) for _ in range(3)]
    batches = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(24)]

    def run(i: int) -> np.ndarray:
        return classifiers[i % 3].predict(batches[i]).numpy()

    with ThreadPoolExecutor(6) as pool:
        for batch, logits in zip(batches, pool.map(run, range(24)), strict=True):
            np.testing.assert_allclose(logits, logits_of(batch), atol=1e-5)


def graph_session(path: Path) -> GraphSession:
    """The buffers of CUDA graphs, in CPU memory: all but the recording itself."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return GraphSession(session, OpenOptions(SHAPE), "cpu", 0)


def test_fixed_buffers_are_filled_anew_for_every_run(network):
    session = graph_session(network)
    addresses = {name: value.data_ptr() for name, value in session._results.items()} | {"": session._buffer.data_ptr()}
    assert session.fixed_batch == 4
    batches = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        arrays = pool.map(lambda batch: session.run(batch.numpy())["logits"], batches)
        tensors = pool.map(lambda batch: session.run_tensor(batch)["logits"], batches)
        for batch, array, tensor in zip(batches, list(arrays), list(tensors), strict=True):
            np.testing.assert_allclose(array, logits_of(batch), atol=1e-5)
            np.testing.assert_allclose(torch.from_dlpack(tensor).numpy(), logits_of(batch), atol=1e-5)
    after = {name: value.data_ptr() for name, value in session._results.items()} | {"": session._buffer.data_ptr()}
    assert after == addresses


def test_fixed_buffers_need_outputs_of_known_size(tmp_path):
    model = onnx_network(RGB)
    model.graph.node.append(onnx.helper.make_node("NonZero", ["logits"], ["where"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("where", onnx.TensorProto.INT64, [2, "found"]))
    onnx.save(model, tmp_path / "free.onnx")
    session = ort.InferenceSession(tmp_path / "free.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(ConfigurationError, match=r"outputs of known size, where .*Leave cuda_graph out"):
        GraphSession(session, OpenOptions(SHAPE), "cpu", 0)


def test_measuring_opens_every_candidate_and_keeps_the_one_it_found_fastest(network):
    opened = {}

    def open_(candidate: str) -> runtime.Session:
        opened[candidate] = runtime.Cpu().open(network, OpenOptions(SHAPE))
        return opened[candidate]

    found = measured(open_, ("heuristic", "exhaustive", "default"), OpenOptions(SHAPE), rounds=3)
    assert list(found.seconds) == list(opened) == ["heuristic", "exhaustive", "default"]
    assert found.fastest == min(found.seconds, key=found.seconds.get)
    assert found.session is opened[found.fastest]


def test_cuda_options_reach_onnxruntime_by_its_names():
    name, options = runtime.Cuda(device_id=1, cuda_graph=True, stream=0x7F00).provider("exhaustive")
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "1",
        "has_user_compute_stream": "1",
        "user_compute_stream": "32512",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_search": "fast"}, "conv_search must be one of .*measure.*'fast'"),
        ({"device_id": -1}, "device_id .*-1"),
        ({"stream": 0}, "stream of your own, got 0"),
        ({"stream": "mine"}, "stream of your own"),
    ],
    ids=str,
)
def test_cuda_options_are_checked_where_they_enter(options, message):
    with pytest.raises(ConfigurationError, match=message):
        runtime.Cuda(**options)


def test_a_failed_run_names_the_provider_and_the_remedy(network):
    session = runtime.Cpu().open(network, OpenOptions(SHAPE))
    with pytest.raises(DeviceError, match=r"CPUExecutionProvider failed on a batch of 1: .*batch_size"):
        session.run(np.zeros((1, 9, 9, 9), np.float32))
