"""Graphs built by hand: each kind that must not be published is refused, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ccnn_zoo.errors import ExportError
from ccnn_zoo.export._graph import Expected, check_graph
from ccnn_zoo.metadata import ModelMetadata

RNG = np.random.default_rng(0)
METADATA = ModelMetadata("hand_made", 2, ("ant", "bee"), (1, 6, 6), (0.5,), (0.25,))
CALIBRATION = RNG.uniform(size=(2, 3, 3)).astype(np.float32)
EXPECTED = Expected(METADATA, 18, Counter({((4, 1, 3, 3), 1): 1, ((2, 2, 3, 3), 2): 1}), (CALIBRATION,))
WEIGHTS = {
    "stem": RNG.normal(size=(4, 1, 3, 3)),
    "grouped": RNG.normal(size=(2, 2, 3, 3)),
    "scale": np.ones(2),
    "shift": np.zeros(2),
    "fc": RNG.normal(size=(2, 2)),
}


def hand_made() -> ModelProto:
    """A valid network of K=2: stem, grouped convolution, pooling, classifier; written without torch."""
    nodes = [
        helper.make_node("Conv", ["image", "stem"], ["x1"], "first"),
        helper.make_node("Conv", ["x1", "grouped"], ["x2"], "second", group=2),
        helper.make_node("Relu", ["x2"], ["x3"], "relu"),
        helper.make_node("GlobalAveragePool", ["x3"], ["x4"]),
        helper.make_node("Flatten", ["x4"], ["x5"]),
        helper.make_node("MatMul", ["x5", "fc"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    return model


def swap_relu(model: ModelProto, *nodes: NodeProto) -> None:
    """Put ``nodes``, which read x2 and write x3, in the place of the Relu."""
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*kept[:2], *nodes, *kept[3:]])


def add_initializer(model: ModelProto, name: str, values: object) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))


def tile(model: ModelProto) -> None:
    add_initializer(model, "repeats", np.array([1, 1, 2, 2], np.int64))
    swap_relu(model, helper.make_node("Tile", ["x2", "repeats"], ["x3"], "copies"))


def expand(model: ModelProto) -> None:
    add_initializer(model, "shape", np.array([1, 2, 1, 1], np.int64))
    swap_relu(model, helper.make_node("Expand", ["x2", "shape"], ["x3"], "copies"))


def norm(source: str, result: str) -> NodeProto:
    return helper.make_node("BatchNormalization", [source, "scale", "shift", "shift", "scale"], [result], "norm")


def foldable_batch_norm(model: ModelProto) -> None:
    swap_relu(model, norm("x2", "x3"))


def foldable_batch_norm_in_a_branch(model: ModelProto) -> None:
    """The convolution stands outside, the batch norm that alone reads it inside an If."""
    add_initializer(model, "yes", True)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2, 2, 2]) for name in ("then", "else")]
    zeros = numpy_helper.from_array(np.zeros((1, 2, 2, 2), np.float32))
    constant = helper.make_node("Constant", [], ["else"], value=zeros)
    branches = {
        "then_branch": helper.make_graph([norm("x2", "then")], "then", [], outputs[:1]),
        "else_branch": helper.make_graph([constant], "else", [], outputs[1:]),
    }
    swap_relu(model, helper.make_node("If", ["yes"], ["x3"], "choice", **branches))


def batch_norm_after_relu(model: ModelProto) -> None:
    swap_relu(model, helper.make_node("Relu", ["x2"], ["y"]), norm("y", "x3"))


def batch_norm_beside_a_shortcut(model: ModelProto) -> None:
    """The convolution is read twice, as that before a pre-activation block is."""
    swap_relu(model, norm("x2", "y"), helper.make_node("Add", ["y", "x2"], ["x3"]))


def batch_norm_of_an_output(model: ModelProto) -> None:
    """The convolution is read once in the graph, and by whoever runs it."""
    swap_relu(model, norm("x2", "x3"))
    model.graph.output.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["batch", 2, 2, 2]))


def transposed(model: ModelProto) -> None:
    add_initializer(model, "up", np.ones((2, 2, 1, 1), np.float32))
    swap_relu(model, helper.make_node("ConvTranspose", ["x2", "up"], ["x3"], "up"))


def hidden_in_a_branch(model: ModelProto) -> None:
    """The refused operator stands inside an If."""
    add_initializer(model, "repeats", np.array([1, 1, 2, 2], np.int64))
    add_initializer(model, "yes", True)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Tile", ["x2", "repeats"], [name], f"{name} copies")],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 4, 4])],
        )
        for name in ("then", "else")
    }
    swap_relu(model, helper.make_node("If", ["yes"], ["x3"], "choice", **branches))


def wrong_groups(model: ModelProto) -> None:
    """Valid ONNX, another network: 2 channels in, 2 out and one group fit a slice of the features."""
    add_initializer(model, "half", np.array([2, 2], np.int64))
    kept = list(model.graph.node)
    del model.graph.node[:]
    second = helper.make_node("Conv", ["a", "grouped"], ["x2"], "second", group=1)
    model.graph.node.extend([kept[0], helper.make_node("Split", ["x1", "half"], ["a", "b"], axis=1), second, *kept[2:]])


def missing_convolution(model: ModelProto) -> None:
    swap_relu(model, helper.make_node("Conv", ["x2", "more"], ["x3"], "third"))
    add_initializer(model, "more", np.ones((2, 2, 1, 1), np.float32))


def computed_weight(model: ModelProto) -> None:
    model.graph.node[1].input[1] = "product"
    model.graph.node.insert(0, helper.make_node("Mul", ["grouped", "grouped"], ["product"]))


def foreign_operator(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    swap_relu(model, helper.make_node("Gelu", ["x2"], ["x3"], "gelu", domain="com.microsoft"))


def foreign_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def function(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ours", 1))
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("ours", "Act", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    swap_relu(model, helper.make_node("Act", ["x2"], ["x3"], domain="ours"))


def external_weight(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def calibration_as_it_is(model: ModelProto) -> None:
    add_initializer(model, "anything", CALIBRATION)


def calibration_reshaped(model: ModelProto) -> None:
    add_initializer(model, "anything", CALIBRATION[:, None, None])


def calibration_in_a_constant(model: ModelProto) -> None:
    value = numpy_helper.from_array(CALIBRATION)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["anything"], value=value))


def calibration_by_name(model: ModelProto) -> None:
    add_initializer(model, "layer1.0.conv1.calibration", np.ones((2, 1, 1), np.float32))


def other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 19


def fixed_batch(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def other_input_name(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "x"


def too_few_logits(model: ModelProto) -> None:
    model.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.ones((2, 1), np.float32), "fc"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def no_metadata(model: ModelProto) -> None:
    del model.metadata_props[:]


def other_labels(model: ModelProto) -> None:
    helper.set_model_props(model, replace(METADATA, labels=("ant", "wasp")).to_props())


def dangling_input(model: ModelProto) -> None:
    model.graph.node[2].input[0] = "nowhere"


def wrong_declared_shape(model: ModelProto) -> None:
    """Only the checker's shape inference, its full check, sees this."""
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3


REFUSALS: dict[Callable[[ModelProto], None], str] = {
    tile: r"has a Tile \('copies'\)",
    expand: r"has a Expand \('copies'\)",
    foldable_batch_norm: r"has a BatchNormalization \('norm'\) that alone reads the convolution 'second'; .*folded",
    foldable_batch_norm_in_a_branch: r"has a BatchNormalization \('norm'\) that alone reads the convolution 'second'",
    batch_norm_of_an_output: r"maps .*\('x2', 'FLOAT', 'batch', 2, 2, 2\)\], not",
    transposed: r"has a ConvTranspose \('up'\); only plain Conv",
    hidden_in_a_branch: r"has a Tile \('(then|else) copies'\)",
    wrong_groups: r"Only in the graph: 1 with weight \[2, 2, 3, 3\] in 1 groups; only in the network: 1 .* in 2 groups",
    missing_convolution: r"Only in the graph: 1 with weight \[2, 2, 1, 1\] in 1 groups; only in the network: none",
    computed_weight: r"the weight of 'second' \(Conv\) is computed",
    foreign_operator: r"com\.microsoft::Gelu",
    foreign_domain: r"more than ONNX's own operators: com\.microsoft",
    function: r"functions of its own \(Act\)",
    external_weight: r"the weight 'stem' lies in another file",
    calibration_as_it_is: r"'anything' in the exported graph equals a calibration kernel",
    calibration_reshaped: r"'anything' in the exported graph equals a calibration kernel",
    calibration_in_a_constant: r"'anything' in the exported graph equals a calibration kernel",
    calibration_by_name: r"holds the calibration kernels 'layer1\.0\.conv1\.calibration'",
    other_opset: r"opset \[19\] instead of 18",
    fixed_batch: r"maps .*\('image', 'FLOAT', 1, 1, 6, 6\)",
    other_input_name: r"maps .*\('x', 'FLOAT', 'batch', 1, 6, 6\)",
    too_few_logits: r"maps .*\('logits', 'FLOAT', 'batch', 1\)",
    no_metadata: r"cannot be read back",
    other_labels: r"carries .*wasp",
    dangling_input: r"not valid ONNX: .*nowhere",
    wrong_declared_shape: r"not valid ONNX",
}


def test_a_valid_graph_passes_and_is_counted(tmp_path):
    onnx.save(hand_made(), tmp_path / "x.onnx")
    summary = check_graph(tmp_path / "x.onnx", EXPECTED)
    assert summary.nodes == {"Conv": 2, "Flatten": 1, "GlobalAveragePool": 1, "MatMul": 1, "Relu": 1}
    assert summary.parameters == 4 * 9 + 2 * 2 * 9 + 2 + 2 + 2 * 2
    assert summary.opset == 18


@pytest.mark.parametrize(("spoil", "message"), REFUSALS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_must_not_be_published_is_refused(tmp_path, spoil, message):
    model = hand_made()
    spoil(model)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=message):
        check_graph(tmp_path / "x.onnx", EXPECTED)


def test_a_plain_network_may_expand_its_own_tensors(tmp_path):
    model = hand_made()
    expand(model)
    plain = replace(METADATA, branches=1)
    helper.set_model_props(model, plain.to_props())
    onnx.save(model, tmp_path / "x.onnx")
    assert check_graph(tmp_path / "x.onnx", replace(EXPECTED, metadata=plain)).nodes["Expand"] == 1


@pytest.mark.parametrize("change", [batch_norm_after_relu, batch_norm_beside_a_shortcut])
def test_batch_norms_that_no_convolution_can_take_in_stay_and_are_counted(tmp_path, change):
    model = hand_made()
    change(model)
    onnx.save(model, tmp_path / "x.onnx")
    assert check_graph(tmp_path / "x.onnx", EXPECTED).nodes["BatchNormalization"] == 1


def with_branch_output(sides: list[int | str]) -> ModelProto:
    model = hand_made()
    add_initializer(model, "first", np.array([0], np.int64))
    model.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["logits", "first"], ["one"]),
            helper.make_node("Concat", ["one", "one"], ["branch_logits"], axis=0),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("branch_logits", TensorProto.FLOAT, sides))
    return model


def test_branch_logits_are_k_by_batch_by_classes_and_only_where_they_are_expected(tmp_path):
    asked = replace(EXPECTED, branch_outputs=True)
    path = tmp_path / "x.onnx"
    onnx.save(with_branch_output([2, "batch", 2]), path)
    assert check_graph(path, asked).nodes["Concat"] == 1
    with pytest.raises(ExportError, match=r"maps .*branch_logits.*, not \[.*\('logits', 'FLOAT', 'batch', 2\)\]"):
        check_graph(path, EXPECTED)
    onnx.save(hand_made(), path)
    with pytest.raises(
        ExportError, match=r"\('logits', 'FLOAT', 'batch', 2\)\], not .*\('branch_logits', 'FLOAT', 2, 'batch', 2\)"
    ):
        check_graph(path, asked)
    onnx.save(with_branch_output([2, 1, 2]), path)
    with pytest.raises(ExportError, match=r"maps .*\('branch_logits', 'FLOAT', 2, 1, 2\)"):
        check_graph(path, asked)


def test_a_truncated_file_is_refused(tmp_path: Path):
    data = hand_made().SerializeToString()
    (tmp_path / "x.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError, match="not valid ONNX"):
        check_graph(tmp_path / "x.onnx", EXPECTED)


def test_ones_are_no_secret_where_there_is_one_branch(tmp_path):
    model = hand_made()
    add_initializer(model, "anything", np.ones((1, 1, 1), np.float32))
    onnx.save(model, tmp_path / "x.onnx")
    expected = replace(EXPECTED, calibrations=(np.ones((1, 1, 1), np.float32),))
    assert check_graph(tmp_path / "x.onnx", expected).opset == 18
