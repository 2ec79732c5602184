"""A grouped convolution written as K separate ones: Split, K times Conv, Concat. The same sums, other kernels."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def groups_of(node: NodeProto) -> int:
    """Return in how many groups a convolution runs."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def grouped_convolutions(model: ModelProto) -> dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[str]]:
    """Return the names of grouped convolutions by kind: (weight shape, groups, strides); depthwise ones are no such."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kinds: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[str]] = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or groups_of(node) == 1:
            continue
        shape = shapes[node.input[1]]
        if shape[1] > 1:
            strides = next((tuple(a.ints) for a in node.attribute if a.name == "strides"), ())
            kinds.setdefault((shape, groups_of(node), strides), []).append(node.name)
    return kinds


def group_part_of(name: str, group: int) -> str:
    """Return what the part of one group of a convolution or of its weight is called."""
    return f"{name}_group_{group}"


def separate(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Return the graph with the grouped convolutions called ``names`` as K separate ones each."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    added = []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        groups = groups_of(node)
        halves = [f"{node.name}_in_{k}" for k in range(groups)]
        nodes.append(
            helper.make_node("Split", [node.input[0]], halves, f"{node.name}_split", axis=1, num_outputs=groups)
        )
        parts = [np.split(numpy_helper.to_array(arrays[name]), groups) for name in node.input[1:] if name]
        for k in range(groups):
            stored = [group_part_of(name, k) for name in node.input[1:] if name]
            added += [numpy_helper.from_array(part[k], name) for part, name in zip(parts, stored, strict=True)]
            name = group_part_of(node.name, k)
            branch = helper.make_node("Conv", [halves[k], *stored], [f"{node.name}_out_{k}"], name)
            branch.attribute.extend(attribute for attribute in node.attribute if attribute.name != "group")
            nodes.append(branch)
        outputs = [f"{node.name}_out_{k}" for k in range(groups)]
        nodes.append(helper.make_node("Concat", outputs, [node.output[0]], f"{node.name}_concat", axis=1))
    return with_nodes(model, nodes, added)


def with_nodes(model: ModelProto, nodes: Iterable[NodeProto], added: Iterable[TensorProto]) -> ModelProto:
    """Return the graph made of other nodes, with those of its own and the ``added`` initializers that they read."""
    nodes = list(nodes)
    result = ModelProto()
    result.CopyFrom(model)
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    stored = {tensor.name: tensor for tensor in (*model.graph.initializer, *added)}
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    return result
