"""What the CUDA and TensorRT backends do, as far as a CPU shows it: fixed buffers, measuring, options."""

from __future__ import annotations

import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.capi import _pybind_state as C
from test_runtime import RGB, onnx_network, save_network
from test_runtime_tensors import BATCH, SHAPE, logits_of

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.runtime import Cuda, OpenOptions, _cuda
from ccnn_zoo.runtime._backend import PROBE
from ccnn_zoo.runtime._cuda import GraphSession, measured
from ccnn_zoo.runtime._onnxruntime import ONNXRUNTIME_ERRORS, session_options

TENSORRT = "TensorrtExecutionProvider"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "network.onnx")


def graph_session(network: Path | bytes) -> GraphSession:
    """The buffers of CUDA graphs, in CPU memory: all but the recording itself."""
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
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


def test_fixed_buffers_refuse_another_shape_of_as_many_values():
    session = graph_session(any_size())
    turned = BATCH.transpose(2, 3).contiguous()
    for run, batch in ((session.run, turned.numpy()), (session.run_tensor, turned)):
        with pytest.raises(ConfigurationError, match=r"\(4, 3, 12, 10\), got \(4, 3, 10, 12\).* cuda_graph out"):
            run(batch)
    np.testing.assert_allclose(session.run(BATCH.numpy())["logits"], logits_of(BATCH), atol=1e-5)


def any_size() -> bytes:
    model = onnx_network(RGB)
    for side, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        side.dim_param = name
    return model.SerializeToString()


def test_fixed_buffers_fit_the_logits_of_branches():
    """Of such an output the first side is the branches', and the second the images'."""
    model = onnx_network(RGB)
    (batch, _) = model.graph.output[0].type.tensor_type.shape.dim
    zero = onnx.helper.make_node("Constant", [], ["zero"], value_ints=[0])
    model.graph.node.extend([zero, onnx.helper.make_node("Unsqueeze", ["logits", "zero"], ["one"])])
    model.graph.node.append(onnx.helper.make_node("Concat", ["one", "one"], ["branch_logits"], axis=0))
    sides = [2, batch.dim_param, 6]
    model.graph.output.append(onnx.helper.make_tensor_value_info("branch_logits", onnx.TensorProto.FLOAT, sides))
    branches = graph_session(model.SerializeToString()).run(BATCH.numpy())["branch_logits"]
    np.testing.assert_allclose(branches, [logits_of(BATCH)] * 2, atol=1e-5)


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


def test_measuring_never_has_more_than_two_sessions_open(monkeypatch):
    # Each run seems to take longer than the one before, so that the first candidate stays the fastest.
    clock = (float(i * i) for i in range(1000))
    monkeypatch.setattr(_cuda, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    opened: list[weakref.ref] = []

    class Idle(runtime.Session):
        def __init__(self) -> None:
            assert sum(session() is not None for session in opened) < 2
            opened.append(weakref.ref(self))

        def run(self, batch):
            return {}

    found = measured(lambda _: Idle(), ("a", "b", "c", "d"), OpenOptions(SHAPE), rounds=2)
    assert (found.fastest, len(opened)) == ("a", 4)


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


@pytest.mark.skipif(Cuda().problem() is None, reason="CUDA works here, and would compute on a stream that is none")
@pytest.mark.skipif(TENSORRT not in ort.get_available_providers(), reason="this onnxruntime has no TensorRT")
def test_tensorrt_options_are_those_that_onnxruntime_reads(tmp_path):
    """onnxruntime reads a provider's options before it loads the provider, and names the one that it refuses."""
    (name, options), (rest, _) = runtime.TensorRT(fp16=True, cache=tmp_path, stream=0x7F00).providers()
    assert (name, rest) == (TENSORRT, "CUDAExecutionProvider")
    assert options.keys() > {"trt_fp16_enable", "trt_engine_cache_enable", "user_compute_stream"}
    assert refused_option(options) is None
    assert refused_option(options | {"trt_fp16_enable": "1"}) == "trt_fp16_enable"
    assert refused_option(options | {"has_user_compute_stream": "1"}) == "has_user_compute_stream"


def refused_option(options: dict[str, str]) -> str | None:
    session = C.InferenceSession(session_options(1), str(PROBE), True, False)
    try:
        session.initialize_session([TENSORRT], [options], set())
    except ONNXRUNTIME_ERRORS as error:
        found = re.search(r"value for the key '(\w+)' should be|Invalid TensorRT EP option: (\w+)", str(error))
        return found and (found[1] or found[2])
    return None


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
