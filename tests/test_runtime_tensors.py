"""Tensors of other libraries in and out through DLPack, as far as a CPU shows it."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from test_runtime import RGB, onnx_network, save_network, weights

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, DeviceError
from ccnn_zoo.runtime import OpenOptions, _torch
from ccnn_zoo.runtime._onnxruntime import OrtSession

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


class Pinned:
    """CPU memory that CUDA has pinned, as DLPack describes it: of device type 3."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __dlpack__(self, **_: object) -> object:
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # The tensor's address comes first, the device type next.
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = 3
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 3, 1


def test_pinned_memory_is_taken_without_a_copy(classifier, network):
    array = BATCH.numpy().copy()
    value, device, index = classifier._session._shared(Pinned(array))
    assert (value.data_ptr(), device, index) == (array.ctypes.data, "cpu", 0)
    np.testing.assert_allclose(np.from_dlpack(classifier.predict(Pinned(array))), logits_of(BATCH), atol=1e-5)
    with pytest.raises(ConfigurationError, match="contiguous"):
        classifier.predict(Pinned(array.swapaxes(2, 3).copy().swapaxes(2, 3)))


def test_a_tensor_on_another_gpu_than_the_networks_is_refused(network):
    opened = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    elsewhere = SimpleNamespace(__dlpack_device__=lambda: (2, 1))
    with pytest.raises(ConfigurationError, match="batch lies on GPU 1, the network runs on GPU 3"):
        OrtSession(opened, "cuda", device_id=3).run_tensor(elsewhere)


def test_torch_refuses_what_it_cannot_read():
    session = _torch._Session(torch.nn.Identity(), "logits", "cpu")
    assert session.run_tensor(BATCH)["logits"].data_ptr() == BATCH.data_ptr()
    with pytest.raises(ConfigurationError, match=r"torch cannot read this .*detach"):
        session.run_tensor(BATCH.clone().requires_grad_())


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


def test_a_failed_run_names_the_provider_and_the_remedy(network):
    session = runtime.Cpu().open(network, OpenOptions(SHAPE))
    with pytest.raises(DeviceError, match=r"CPUExecutionProvider failed on a batch of 1: .*batch_size"):
        session.run(np.zeros((1, 9, 9, 9), np.float32))
