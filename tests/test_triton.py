"""Triton model repositories, read by Triton's own protobuf and run by onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from forks import ccnn
from google.protobuf import text_format
from onnx import TensorProto, helper
from serve_network import LABELS, METADATA, NUMBERS, save_network

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, IntegrityError, MetadataError, RepositoryError
from ccnn_zoo.export import add_confidence
from ccnn_zoo.metadata import DetectorMetadata
from ccnn_zoo.serve import TritonOptions, write_triton
from ccnn_zoo.uncertainty import Confidence

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")


def read(folder: Path) -> model_config_pb2.ModelConfig:
    """Parse a configuration as Triton does: an unknown field, enumeration or type is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def network(tmp_path) -> Path:
    return save_network(tmp_path / "network.onnx")


def test_a_repository_describes_the_network_that_it_holds(network, tmp_path):
    folder = write_triton(network, tmp_path / "models")
    assert folder == tmp_path / "models" / "ccnn_test"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert names == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["ccnn_test"], "nothing temporary is left"
    config = read(folder)
    assert (config.name, config.backend, config.platform) == ("ccnn_test", "onnxruntime", "onnxruntime_onnx")
    # What a client would send and get, against what onnxruntime says of the file.
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    ((sent,), (given,)) = config.input, config.output
    assert (sent.name, given.name) == (session.get_inputs()[0].name, session.get_outputs()[0].name)
    assert config.max_batch_size == 32
    assert sent.data_type == given.data_type == model_config_pb2.TYPE_FP32
    batch = np.zeros((config.max_batch_size, *sent.dims), np.float32)
    (logits,) = session.run([given.name], {sent.name: batch})
    assert list(logits.shape[1:]) == list(given.dims)
    assert (folder / given.label_filename).read_text().splitlines() == list(LABELS)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_AUTO, 1)
    # A client of other software learns from the server how to prepare pictures.
    assert config.parameters["ccnn_zoo.mean"].string_value == "[0.4, 0.5, 0.6]"


def test_the_command_line_exports_uint8_pictures_for_triton(tmp_path):
    command = ["export", "ccnn_resnet18_cifar.mnist", "--preprocess"]
    command += [f"--output={tmp_path / 'digits.onnx'}", f"--triton={tmp_path / 'models'}"]
    run = ccnn(*command, "--triton-set", "instances=2")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "models" / "ccnn_resnet18_cifar"
    config = read(folder)
    ((sent,), (given,)) = config.input, config.output
    assert (sent.data_type, list(sent.dims)) == (model_config_pb2.TYPE_UINT8, [-1, -1, 1])
    assert config.instance_group[0].count == 2
    pictures = np.random.default_rng(0).integers(0, 256, (5, 40, 31, 1), np.uint8)
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run([given.name], {sent.name: pictures})
    labels = (folder / given.label_filename).read_text().splitlines()
    expected = runtime.load(tmp_path / "digits.onnx", device="cpu").classify(list(pictures))
    assert [labels[index] for index in logits.argmax(1)] == [result.label for result in expected]
    assert logits.shape[1:] == tuple(given.dims)
    run = ccnn(*command, "--triton-set", "instance=2")
    assert run.returncode == 1
    assert "instances" in run.stderr, "what there is"


def test_every_option_arrives_in_tritons_fields(network, tmp_path):
    options = TritonOptions(
        max_batch_size=8,
        queue_delay_us=250,
        instances=3,
        kind="gpu",
        gpus=[0, 2],
        accelerator="tensorrt",
        fp16=True,
        threads=4,
    )
    config = read(write_triton(network, tmp_path / "models", name="pets", options=options))
    assert (config.name, config.max_batch_size) == ("pets", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 3)
    assert list(group.gpus) == [0, 2]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    assert config.parameters["intra_op_thread_count"].string_value == "4"
    on_cpu = TritonOptions(kind="cpu", accelerator="openvino")
    config = read(write_triton(network, tmp_path / "models", name="pets", options=on_cpu))  # replaced as a whole
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.optimization.execution_accelerators.cpu_execution_accelerator[0].name == "openvino"


def test_fixed_shapes_are_run_as_they_are_and_may_be_a_cuda_graph(tmp_path):
    fixed = save_network(tmp_path / "fixed.onnx", batch=4)
    for accelerator, key in (("cuda", "enable_cuda_graph"), ("tensorrt", "trt_cuda_graph_enable")):
        options = TritonOptions(kind="gpu", accelerator=accelerator, cuda_graph=True)
        config = read(write_triton(fixed, tmp_path / "models", options=options))
        assert config.max_batch_size == 0
        assert config.WhichOneof("scheduling_choice") is None
        assert list(config.input[0].dims) == [4, *METADATA.input_size]
        assert list(config.output[0].dims) == [4, len(LABELS)]
        assert config.optimization.cuda.graphs
        (chosen,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (chosen.name, dict(chosen.parameters)) == (accelerator, {key: "1"})


def test_a_second_output_whose_first_size_is_no_batch_forbids_batching(network, tmp_path):
    model = onnx.load(network)
    model.graph.node.append(helper.make_node("Unsqueeze", ["logits", "axes"], ["branch_logits"]))
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [0]))
    shape = [1, "N", len(LABELS)]
    model.graph.output.append(helper.make_tensor_value_info("branch_logits", TensorProto.FLOAT, shape))
    onnx.save(model, network)
    config = read(write_triton(network, tmp_path / "models"))
    assert config.max_batch_size == 0
    assert [list(output.dims) for output in config.output] == [[-1, len(LABELS)], [1, -1, len(LABELS)]]
    assert [output.label_filename for output in config.output] == ["labels.txt", ""]
    with pytest.raises(ConfigurationError, match="max_batch_size=8 needs"):
        write_triton(network, tmp_path / "models", options=TritonOptions(max_batch_size=8))


@pytest.mark.parametrize("branched", [False, True])
def test_what_the_graph_says_of_its_own_worth_is_listed(network, tmp_path, branched):
    if branched:
        model = onnx.load(network)
        model.graph.node.append(helper.make_node("Concat", ["row", "row"], ["branch_logits"], axis=0))
        model.graph.node.append(helper.make_node("Unsqueeze", ["logits", "axes"], ["row"]))
        model.graph.node.sort(key=lambda node: node.op_type == "Concat")
        model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [0]))
        shape = [2, "N", len(LABELS)]
        model.graph.output.append(helper.make_tensor_value_info("branch_logits", TensorProto.FLOAT, shape))
        onnx.save(model, network)
    add_confidence(network, NUMBERS, outputs=True)
    folder = write_triton(network, tmp_path / "models")
    config = read(folder)
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in config.output] == [output.name for output in session.get_outputs()]
    assert len(config.output) == (6 if branched else 4)
    used = {name for node in onnx.load(network).graph.node for name in node.input}
    assert {tensor.name for tensor in onnx.load(network).graph.initializer} <= used, "onnxruntime warns of others"
    # With batching a picture's part has the size that clients see, where a reshape says so in another form.
    assert config.max_batch_size == (0 if branched else 32)
    given = session.run(None, {"images": np.zeros((5, *METADATA.input_size), np.float32)})
    for output, values in zip(config.output, given, strict=True):
        sizes = list(values.shape[1:] if config.max_batch_size else values.shape)
        assert len(output.dims) >= 1, "Triton takes no output without sizes"
        assert output.HasField("reshape") == (sizes == [])
        said = list(output.reshape.shape if output.HasField("reshape") else output.dims)
        assert [-1 if side == -1 else size for side, size in zip(said, sizes, strict=True)] == said
        assert np.prod(output.dims) == np.prod(said, initial=1)
    named = {output.name for output in config.output if output.label_filename}
    assert named == {"logits", "probabilities"}
    assert Confidence.from_json(config.parameters["ccnn_zoo.confidence"].string_value) == NUMBERS


def test_a_detector_is_run_an_image_at_a_time(tmp_path):
    shapes = {"boxes": (TensorProto.FLOAT, ["n", 4]), "labels": (TensorProto.INT64, ["n"])}
    shapes["scores"] = (TensorProto.FLOAT, ["n"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]
    model = helper.make_model(helper.make_graph([], "detector", [image], outputs))
    helper.set_model_props(model, DetectorMetadata("ccnn_resnet18", 2, ("cell",), 300, 500).to_props())
    onnx.save(model, tmp_path / "detector.onnx")
    config = read(write_triton(tmp_path / "detector.onnx", tmp_path / "models"))
    assert (config.name, config.max_batch_size) == ("ccnn_resnet18", 0)
    assert [list(tensor.dims) for tensor in config.input] == [[1, 3, -1, -1]]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [
        ("boxes", [-1, 4]),
        ("labels", [-1]),
        ("scores", [-1]),
    ]
    assert config.output[1].data_type == model_config_pb2.TYPE_INT64
    assert not any(tensor.label_filename for tensor in config.output)


def test_text_of_any_kind_survives(tmp_path):
    odd = replace(METADATA, architecture='a "b"\\ é 漢 {}', labels=("ein Bär\u3000", " ", *LABELS[2:]))
    config_folder = write_triton(save_network(tmp_path / "odd.onnx", metadata=odd), tmp_path / "models", name="odd")
    assert read(config_folder).parameters["ccnn_zoo.architecture"].string_value == odd.architecture
    # One line a class, whatever the names hold: Triton counts lines.
    assert (config_folder / "labels.txt").read_text().split("\n") == [*odd.labels, ""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1, got 0"),
        ({"instances": True}, "instances must be an integer of at least 1, got True"),
        ({"queue_delay_us": -1}, "queue_delay_us must be an integer of at least 0, got -1"),
        ({"kind": "tpu"}, "kind must be one of .*'tpu'"),
        ({"accelerator": "magic"}, "accelerator must be one of .*'magic'"),
        ({"gpus": "01", "kind": "gpu"}, "gpus must be a list"),
        ({"gpus": [0]}, "needs kind='gpu'"),
        ({"kind": "cpu", "accelerator": "tensorrt"}, "contradicts"),
        ({"kind": "gpu", "accelerator": "openvino"}, "'openvino' is for CPUs"),
        ({"fp16": True}, "needs accelerator='tensorrt'"),
        ({"cuda_graph": True}, "needs accelerator"),
        ({"cuda_graph": True, "accelerator": "cuda"}, "sizes are all fixed"),
    ],
)
def test_bad_options_are_refused_by_name(network, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        write_triton(network, tmp_path / "models", options=TritonOptions(**options))
    assert not (tmp_path / "models").exists()


def test_what_cannot_be_written_leaves_nothing_behind(network, tmp_path):
    models = tmp_path / "models"
    with pytest.raises(ConfigurationError, match=r"\.\./escape"):
        write_triton(network, models, name="../escape")
    with pytest.raises(RepositoryError, match="no such file"):
        write_triton(tmp_path / "missing.onnx", models)
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(IntegrityError, match="junk"):
        write_triton(tmp_path / "junk.onnx", models)
    bare = onnx.load(network)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(MetadataError):
        write_triton(tmp_path / "bare.onnx", models)
    assert not models.exists()
    (models / "ccnn_test").mkdir(parents=True)
    (models / "ccnn_test" / "thesis.txt").write_text("the only copy")
    with pytest.raises(RepositoryError, match="no Triton model"):
        write_triton(network, models)
    assert (models / "ccnn_test" / "thesis.txt").read_text() == "the only copy"
    assert len(list(models.iterdir())) == 1
