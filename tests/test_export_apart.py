"""Networks written branch by branch: the same logits, one chain of nodes for each branch."""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import ccnn_zoo
from ccnn_zoo import export
from ccnn_zoo.export._branch_chains import branches_apart
from ccnn_zoo.export._convert import convert

BRANCHES = 3
SLOW = [
    "mobilenetv3_small_050",
    "ccnn_nin",
    "densenet121",  # concatenates channels
    "ccnn_wrn28_10",
    "ccnn_alexnet",
    "resnext50_32x4d",  # groups of its own
    "efficientnet_b0",
    "seresnet18",
    "hrnet_w18_small",  # Resize between the chains
    "regnety_002",
    "resnetv2_18",
]
NAMES = ["ccnn_resnet18_cifar"]


@pytest.fixture(scope="module")
def graph_of():
    @cache
    def translate(name: str) -> tuple[ModelProto, np.ndarray, np.ndarray]:
        """Return a calibrated network's graph, images, and its logits by torch."""
        torch.manual_seed(0)
        own = name.startswith("ccnn_")
        model = timm.create_model(name, num_classes=4, **({"branches": BRANCHES} if own else {}))
        model = (model if own else ccnn_zoo.calibrate(model, branches=BRANCHES, diversity=0.5)).eval()
        channels, height, width = model.pretrained_cfg["input_size"]
        size = (channels, min(height, 96), min(width, 96))
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": size}
        images = torch.randn(2, *size)
        with torch.no_grad():
            logits = model(images).numpy()
        return convert(ccnn_zoo.fold(model), export.metadata_of(model, list("abcd")), 18), images.numpy(), logits

    return translate


def session_of(model: ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def nodes_of(model: ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def groups_of(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_logits_are_those_of_torch_and_no_group_holds_two_branches(graph_of, name):
    graph, images, expected = graph_of(name)
    before = graph.SerializeToString()
    apart = branches_apart(graph, BRANCHES)
    onnx.checker.check_model(apart, full_check=True)
    (logits,) = session_of(apart).run(["logits"], {"image": images})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    grouped = {node.name: groups_of(node) for node in nodes_of(graph, "Conv") if groups_of(node) > 1}
    left = {node.name: groups_of(node) for node in nodes_of(apart, "Conv")}
    for node, groups in grouped.items():
        assert [left[f"{node}_branch_{k}"] for k in range(BRANCHES)] == [groups // BRANCHES] * BRANCHES
    assert graph.SerializeToString() == before


def test_a_residual_network_is_cut_once_at_its_end(graph_of):
    graph, *_ = graph_of("ccnn_resnet18_cifar")
    apart = branches_apart(graph, BRANCHES)
    for kind in ("Conv", "Relu", "Add"):
        assert len(nodes_of(apart, kind)) == BRANCHES * len(nodes_of(graph, kind)), kind
    assert len(nodes_of(apart, "Split")) == len(nodes_of(graph, "Split"))
    assert len(nodes_of(apart, "Concat")) == len(nodes_of(graph, "Concat")) + 1


def test_a_chain_ends_before_the_next_begins(graph_of):
    graph, *_ = graph_of("ccnn_resnet18_cifar")
    branches = [node.name[-1] for node in branches_apart(graph, BRANCHES).graph.node if "_branch_" in node.name]
    assert branches == sorted(branches)


def small_graph(nodes: list[onnx.NodeProto], channels: int = 4, **arrays: np.ndarray) -> ModelProto:
    """A graph of ``nodes`` from ``image``, (2, channels, 5, 5), to ``logits``."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(4, 2, 3, 3)), **arrays}
    initializers = [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", onnx.TensorProto.FLOAT, [2, channels, 5, 5])],
        [value("logits", onnx.TensorProto.FLOAT, [2, 4, 5, 5])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def grouped_convolution(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w"], [target], target, group=2, pads=[1, 1, 1, 1])


def norm_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"scale": rng.normal(size=4), "shift": rng.normal(size=4), "mean": rng.normal(size=4), "var": np.ones(4) * 2}


@pytest.mark.parametrize(
    ("operator", "arrays", "apart"),
    [
        (helper.make_node("Add", ["a", "c"], ["b"]), {"c": np.float32(0.5)}, True),
        (helper.make_node("Mul", ["a", "c"], ["b"]), {"c": np.arange(4).reshape(4, 1, 1)}, True),
        (helper.make_node("Mul", ["c", "a"], ["b"]), {"c": np.arange(4).reshape(1, 4, 1, 1)}, True),
        (helper.make_node("PRelu", ["a", "c"], ["b"]), {"c": np.arange(4).reshape(4, 1, 1)}, True),
        (helper.make_node("Clip", ["a", "", "c"], ["b"]), {"c": np.float32(0.1)}, True),
        (helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]), norm_arrays(), True),
        # Along the width, the batch, or all of it: not by channels.
        (helper.make_node("Mul", ["a", "c"], ["b"]), {"c": np.arange(5)}, False),
        (helper.make_node("Mul", ["a", "c"], ["b"]), {"c": np.arange(2).reshape(2, 1, 1, 1)}, False),
        (helper.make_node("Mul", ["a", "c"], ["b"]), {"c": np.arange(20).reshape(4, 1, 5)}, False),
        (helper.make_node("Softmax", ["a"], ["b"], axis=1), {}, False),
    ],
)
def test_constants_go_to_the_channels_that_they_belong_to(operator, arrays, apart):
    nodes = [grouped_convolution("image", "a"), operator, grouped_convolution("b", "logits")]
    graph = small_graph(nodes, **arrays)
    written = branches_apart(graph, 2)
    run_both(graph, written)
    assert len(nodes_of(written, operator.op_type)) == (2 if apart else 1)
    assert len(nodes_of(written, "Conv")) == 4


def run_both(graph: ModelProto, written: ModelProto) -> None:
    """The rewritten graph is valid, and gives in onnxruntime what the reference gives of the first."""
    onnx.checker.check_model(written, full_check=True)
    image = np.random.default_rng(2).normal(size=(2, 4, 5, 5)).astype(np.float32)
    (expected,) = ReferenceEvaluator(graph).run(None, {"image": image})
    (found,) = session_of(written).run(None, {"image": image})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "means"), [("a", 2), ("stored", 1)])
def test_axes_of_a_mean_are_no_channels(source, means):
    nodes = [
        grouped_convolution("image", "a"),
        helper.make_node("ReduceMean", [source, "axes"], ["m"], keepdims=1),
        helper.make_node("Mul", ["a", "m"], ["b"]),
        grouped_convolution("b", "logits"),
    ]
    graph = small_graph(nodes, stored=np.random.default_rng(3).normal(size=(1, 4, 5, 5)))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    written = branches_apart(graph, 2)
    run_both(graph, written)
    assert len(nodes_of(written, "ReduceMean")) == means


def test_a_constant_of_five_sides_moves_the_channels_and_keeps_an_operator_whole():
    nodes = [
        grouped_convolution("image", "a"),
        helper.make_node("Mul", ["a", "c"], ["five"]),
        helper.make_node("Squeeze", ["five", "axis"], ["b"]),
        grouped_convolution("b", "logits"),
    ]
    graph = small_graph(nodes, c=np.full((1, 1, 1, 1, 1), 0.5))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    run_both(graph, branches_apart(graph, 2))


def test_a_convolution_whose_bias_is_computed_stays_whole():
    first = helper.make_node("Conv", ["image", "w", "bias"], ["a"], "first", group=2, pads=[1, 1, 1, 1])
    nodes = [helper.make_node("Neg", ["c"], ["bias"]), first, grouped_convolution("a", "logits")]
    graph = small_graph(nodes, c=np.arange(4))
    written = branches_apart(graph, 2)
    run_both(graph, written)
    assert [groups_of(node) for node in nodes_of(written, "Conv")] == [2, 1, 1]


def test_optional_inputs_and_outputs_that_are_left_out_do_not_connect_nodes():
    nodes = [
        grouped_convolution("image", "a"),
        helper.make_node("Clip", ["a", "", "c"], ["clipped"]),
        helper.make_node("MaxPool", ["clipped"], ["b", ""], kernel_shape=[1, 1]),
        grouped_convolution("b", "logits"),
    ]
    graph = small_graph(nodes, c=np.float32(0.1))
    run_both(graph, branches_apart(graph, 2))


def test_an_output_that_is_a_stored_tensor_stays():
    graph = small_graph([grouped_convolution("image", "logits")], labels=np.arange(3))
    graph.graph.output.append(helper.make_tensor_value_info("labels", onnx.TensorProto.FLOAT, [3]))
    written = branches_apart(graph, 2)
    onnx.checker.check_model(written, full_check=True)
    found = session_of(written).run(["labels"], {"image": np.zeros((2, 4, 5, 5), np.float32)})
    np.testing.assert_array_equal(found[0], np.arange(3))


def test_nothing_to_cut_names_that_parts_would_get_and_inner_graphs_are_left_alone():
    assert branches_apart(small_graph([grouped_convolution("image", "logits")]), 3) is None
    plain = helper.make_node("Conv", ["image", "v"], ["logits"])
    assert branches_apart(small_graph([plain], v=np.ones((4, 4, 1, 1))), 2) is None
    taken = [grouped_convolution("image", "a"), helper.make_node("Relu", ["a"], ["a_branch_0"])]
    assert branches_apart(small_graph([*taken, grouped_convolution("a_branch_0", "logits")]), 2) is None
    stored = helper.make_node("Mul", ["a", "w_branch_0"], ["logits"])
    graph = small_graph([grouped_convolution("image", "a"), stored], w_branch_0=np.float32(2))
    assert branches_apart(graph, 2) is None
    inner = helper.make_graph([helper.make_node("Identity", ["a"], ["z"])], "inner", [], [graph.graph.output[0]])
    inner.output[0].name = "z"
    choice = helper.make_node("If", ["yes"], ["logits"], then_branch=inner, else_branch=inner)
    graph = small_graph([grouped_convolution("image", "a"), choice])
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    assert branches_apart(graph, 2) is None
