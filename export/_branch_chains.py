"""A network of K branches written branch by branch: K chains of plain operators where there was one of K groups.

All branches at once make every feature map K times larger, and the weights of a layer too; where they no longer fit the
cache, grouped convolutions take longer than K plain networks. A chain needs no more of it than the plain network. The
sums are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ._separate import groups_of, with_nodes

# fmt: off
_ELEMENTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Abs", "Neg", "Exp", "Log", "Sqrt", "Erf", "Identity",
    "Clip", "Relu", "PRelu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Sigmoid", "Tanh",
    "HardSigmoid", "HardSwish", "Softplus", "Softsign",
))
# fmt: on
_POOLING = frozenset(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"))
_CHANNELS = 1


def branches_apart(model: ModelProto, branches: int) -> ModelProto | None:
    """Return the graph with as much of it as can be as one chain of nodes for each branch.

    A grouped convolution becomes ``branches`` convolutions, which is right for every one whose groups ``branches``
    divides, and so does the convolution of the image before it. Operators that do the same to every channel become as
    many. Between the chains and the rest stand Split and Concat.

    Args:
        model: the network's own graph, its weights stored as initializers.
        branches: K.

    Returns:
        A new graph; None where nothing would change, or the graph cannot be rewritten: nodes hold other graphs, or
        names are already such as parts get.
    """
    names = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    inner = any(attribute.type == AttributeProto.GRAPH for node in model.graph.node for attribute in node.attribute)
    if inner or any(_PART.search(name) for name in names):
        return None
    writer = _Writer(model, branches)
    return writer.written() if writer.finds_branches() else None


def part_of(name: str, branch: int) -> str:
    """Return what the part of one branch of a node or a value is called."""
    return f"{name}_branch_{branch}"


_PART = re.compile(r"_branch_\d+$")


class _Writer:
    def __init__(self, model: ModelProto, branches: int) -> None:
        self._model, self._branches = model, branches
        self._arrays = {tensor.name: tensor for tensor in model.graph.initializer}
        inferred = shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
        self._wanted = self._found_wanted()
        self._nodes: list[NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        self._parts: dict[str, list[str]] = {}
        self._not_whole: set[str] = set()

    def finds_branches(self) -> bool:
        """Whether a grouped convolution comes apart."""
        return any(_is_grouped(node) and self._comes_apart(node) for node in self._model.graph.node)

    def written(self) -> ModelProto:
        for node in self._model.graph.node:
            if self._is_of_branches(node):
                self._write_apart(node)
            else:
                for name in node.input:
                    self._join(name)
                self._nodes.append(node)
        for value in self._model.graph.output:
            self._join(value.name)
        return with_nodes(self._model, self._by_depth(), self._added.values())

    def _found_wanted(self) -> set[str]:
        """Return the values that grouped convolutions read, at once or through operators that come apart."""
        wanted: set[str] = set()
        for node in reversed(self._model.graph.node):
            if _is_grouped(node) or (node.op_type != "Conv" and node.output[0] in wanted):
                wanted.update(node.input if self._comes_apart(node) else ())
        return wanted

    def _is_of_branches(self, node: NodeProto) -> bool:
        """Whether a node that comes apart stands within chains or begins them."""
        follows = node.op_type != "Conv" and any(name in self._parts for name in self._values(node))
        return self._comes_apart(node) and (_is_grouped(node) or node.output[0] in self._wanted or follows)

    def _comes_apart(self, node: NodeProto) -> bool:
        if node.op_type == "Conv":
            if self._values(node) != [node.input[0]]:  # a weight or bias is computed
                return False
            weights, groups = self._arrays[node.input[1]].dims[0], groups_of(node)
            return weights % self._branches == 0 and (groups == 1 or groups % self._branches == 0)
        if node.op_type not in _ELEMENTWISE | _POOLING | {"BatchNormalization"} or len(node.output) > 1:
            return False
        constants = [(place, name) for place, name in enumerate(node.input) if name in self._arrays]
        if node.op_type == "ReduceMean":
            axes = np.ravel(numpy_helper.to_array(self._arrays[constants[0][1]])) if len(constants) == 1 else []
            return self._channels(node) > 0 and len(axes) > 0 and set(axes % 4) <= {2, 3}
        count = self._channels(node)
        return count > 0 and all(self._goes_by_channel(node, place, count) for place, _ in constants)

    def _goes_by_channel(self, node: NodeProto, place: int, channels: int) -> bool:
        """Whether a constant input is one value, or one for each channel."""
        sides, axis = self._arrays[node.input[place]].dims, self._axis(node, place)
        by_channel = axis >= 0 and sides[axis] == channels == np.prod(sides)
        return len(sides) <= 4 and (by_channel or np.prod(sides) == 1)

    def _axis(self, node: NodeProto, place: int) -> int:
        """Return the axis of the channels of a constant input, negative if it has none."""
        if node.op_type in ("Conv", "BatchNormalization"):
            return 0
        return len(self._arrays[node.input[place]].dims) - 3  # as broadcast to (N, C, H, W)

    def _values(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self._arrays]

    def _channels(self, node: NodeProto) -> int:
        """Return the channels of all feature maps that a node reads, 0 if they differ or the branches do not divide."""
        shapes = [self._shapes.get(name, ()) for name in self._values(node)]
        found = {shape[_CHANNELS].dim_value if len(shape) == 4 else 0 for shape in shapes}
        return min(found) if len(found) == 1 and min(found) % self._branches == 0 else 0

    def _write_apart(self, node: NodeProto) -> None:
        begins = node.op_type == "Conv" and not _is_grouped(node)
        if begins:
            self._join(node.input[0])
        read = [[node.input[0]] * self._branches] if begins else []
        read += [self._split(node, place) for place in range(len(read), len(node.input))]
        outputs = [part_of(node.output[0], k) for k in range(self._branches)]
        for k, output in enumerate(outputs):
            name = node.name and part_of(node.name, k)
            part = helper.make_node(node.op_type, [names[k] for names in read], [output], name)
            part.attribute.extend(node.attribute)
            for attribute in part.attribute:
                if attribute.name == "group" and not begins:
                    attribute.i //= self._branches
            self._nodes.append(part)
        self._parts[node.output[0]] = outputs
        self._not_whole.add(node.output[0])

    def _split(self, node: NodeProto, place: int) -> list[str]:
        """Return the names of the parts of an input, or K times the name of a constant that all parts share."""
        name = node.input[place]
        constant = self._arrays.get(name)
        if not name or (constant is not None and (node.op_type == "ReduceMean" or np.prod(constant.dims) == 1)):
            return [name] * self._branches
        if name in self._parts:
            return self._parts[name]
        parts = [part_of(name, k) for k in range(self._branches)]
        if constant is not None:
            pieces = np.split(numpy_helper.to_array(constant), self._branches, self._axis(node, place))
            self._added |= {n: numpy_helper.from_array(piece, n) for n, piece in zip(parts, pieces, strict=True)}
        else:
            count = {"axis": _CHANNELS, "num_outputs": self._branches}
            self._nodes.append(helper.make_node("Split", [name], parts, f"{name}_split", **count))
        self._parts[name] = parts
        return parts

    def _join(self, name: str) -> None:
        """Make whole a value that has been written in parts alone."""
        if name in self._not_whole:
            self._not_whole.remove(name)
            self._nodes.append(helper.make_node("Concat", self._parts[name], [name], f"{name}_concat", axis=_CHANNELS))

    def _by_depth(self) -> Iterator[NodeProto]:
        """Yield the nodes so that a chain is finished before the next one begins."""
        makers = {name: number for number, node in enumerate(self._nodes) for name in node.output if name}
        done: set[int] = set()
        stack = [makers[value.name] for value in reversed(self._model.graph.output) if value.name in makers]
        while stack:
            needed = (makers.get(name) for name in self._nodes[stack[-1]].input)
            waiting = [number for number in needed if number is not None and number not in done]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            number = stack.pop()
            if number not in done:
                done.add(number)
                yield self._nodes[number]


def _is_grouped(node: NodeProto) -> bool:
    return node.op_type == "Conv" and groups_of(node) > 1
