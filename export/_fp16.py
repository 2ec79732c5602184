"""fp16: half precision where the network bears it, single precision where it does not.

onnxruntime's own converter (``onnxruntime.transformers.float16``) passes what flows between two nodes that stay in
single precision through half precision all the same, so that an overflow stays one, and it cuts weights off at the
largest half number. So the types are assigned here: every tensor has that of the node that makes it, and is cast only
where a reader of the other type needs it. Inputs and outputs stay float32.

onnxruntime's CPU provider computes such a graph in single precision and drops the casts in between, so it never sees
an overflow that a GPU would. :func:`emulate` makes a single-precision graph in which every half tensor is rounded,
overflow included; sums within one operator stay in single precision, as tensor cores have them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from ccnn_zoo.errors import ExportError

from ._graph import INPUT, OUTPUT
from ._session import session_of

HALF_TOLERANCE = 0.02
"""Allowed difference of a logit in fp16, relative to the largest one."""

LARGEST = float(np.finfo(np.float16).max) / 2
"""Largest value that may be stored as a half: half of the largest that fits, for images that were not seen."""

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Their result's type is written in an attribute.
_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})
_PROBED = 8  # images whose intermediate results are looked at


def to_half(model: ModelProto, kept: Collection[str]) -> ModelProto:
    """Return the graph in half precision.

    Args:
        model: in single precision.
        kept: names of nodes that stay so.
    """
    return _Writer(model, frozenset(kept), emulated=False).model


def emulate(model: ModelProto, kept: Collection[str]) -> ModelProto:
    """Return a graph in single precision that rounds as :func:`to_half` of the same arguments does on a GPU."""
    return _Writer(model, frozenset(kept), emulated=True).model


def choose_kept(model: ModelProto, images: Tensor) -> dict[str, str]:
    """Return the names of nodes that must stay in single precision, each with the reason.

    First those that read, hold or give a value above :data:`LARGEST`. Then, while the logits of the emulated graph
    are off by more than half of what is allowed, those that add most to the error, twice as many each time.

    Args:
        model: in single precision.
        images: float32 (N, C, H, W), of which the first eight are looked at.

    Raises:
        ExportError: more than half of the nodes would have to stay.
    """
    images = images[:_PROBED]
    exact = _all_tensors(model, images)
    kept = {node.name: "overflows" for node in model.graph.node if _overflows(node, model.graph, exact)}
    allowed = HALF_TOLERANCE / 2 * float(np.abs(exact[OUTPUT]).max())
    added = 1
    while True:
        rounded = _all_tensors(emulate(model, kept), images)
        error = np.abs(rounded[OUTPUT] - exact[OUTPUT]).max()
        if error <= allowed:
            return kept
        causes = [name for name in _by_added_error(model.graph, exact, rounded) if name not in kept]
        kept |= dict.fromkeys(causes[:added], "loses accuracy")
        added *= 2
        if 2 * len(kept) > len(model.graph.node) or not causes:
            raise ExportError(
                f"in half precision the logits are off by {error:.3g}, {allowed:.3g} are wanted, though {len(kept)} of "
                f"{len(model.graph.node)} nodes stay in single precision. Export in fp32."
            )


def _overflows(node: NodeProto, graph: GraphProto, tensors: Mapping[str, np.ndarray]) -> bool:
    values = [tensors[name] for name in (*node.input, *node.output) if name in tensors]
    values += [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in node.input]
    floats = [value for value in values if np.issubdtype(value.dtype, np.floating) and value.size]
    return any(not np.abs(value).max() <= LARGEST for value in floats)


def _by_added_error(
    graph: GraphProto, exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yield the names of nodes, first those whose result is off by most more than what they read."""

    def relative(name: str) -> float:
        if name not in exact or name not in rounded:
            return 0.0
        spread = float(np.sqrt(np.mean(exact[name].astype(np.float64) ** 2)))
        off = float(np.sqrt(np.mean((rounded[name].astype(np.float64) - exact[name]) ** 2)))
        return off / max(spread, 1e-30) if np.isfinite(off) else float("inf")

    added = {}
    for node in graph.node:
        read = max((relative(name) for name in node.input), default=0.0)
        made = max((relative(name) for name in node.output), default=0.0)
        added[node.name] = made - read if np.isfinite(read) else 0.0
    yield from sorted((name for name, value in added.items() if value > 0), key=lambda name: -added[name])


def _all_tensors(model: ModelProto, images: Tensor) -> dict[str, np.ndarray]:
    """Return every float tensor that a graph computes, by its name."""
    typed = _element_types(model)
    made = [name for node in model.graph.node for name in node.output if typed.get(name) == _FLOAT]
    everything = ModelProto()
    everything.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    everything.graph.output.extend(
        helper.make_tensor_value_info(name, _FLOAT, None) for name in made if name not in there
    )
    session = session_of(everything)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: images.numpy()}), strict=True))


def _element_types(model: ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


@dataclass(frozen=True)
class _Types:
    """Which inputs and outputs of a node are half."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


class _Writer:
    """Writes the nodes of a graph anew, in half precision, or in single precision with the same rounding."""

    def __init__(self, source: ModelProto, kept: frozenset[str], *, emulated: bool) -> None:
        self._types = _element_types(source)
        self._opset = source.opset_import[0].version
        self._kept, self._emulated = kept, emulated
        self._stored = {tensor.name: tensor for tensor in source.graph.initializer}
        self._outputs = {value.name for value in source.graph.output}
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._halves: set[str] = set()  # tensors made in half precision
        self._copies: dict[tuple[str, bool], str] = {}
        for node in source.graph.node:
            self._write(node)
        self.model = ModelProto()
        self.model.CopyFrom(source)
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._initializers.values())

    def _write(self, source: NodeProto) -> None:
        types = self._types_of(source)
        node = NodeProto()
        node.CopyFrom(source)
        for place, (name, half) in enumerate(zip(source.input, types.inputs, strict=True)):
            node.input[place] = self._read(name, half) if name else ""
        self._nodes.append(node)
        for place, (name, half) in enumerate(zip(source.output, types.outputs, strict=True)):
            if not half or not name:
                continue
            if self._emulated:
                node.output[place] = f"{name}_unrounded"
                self._round(node.output[place], name)
                self._halves.add(name)
            elif name in self._outputs:
                node.output[place] = self._copies[name, True] = f"{name}_fp16"
                self._cast(node.output[place], name, _FLOAT)
            else:
                self._halves.add(name)

    def _types_of(self, node: NodeProto) -> _Types:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise ExportError(f"{node.name!r} ({node.op_type}) holds a graph of its own. Export in fp32.")
        if node.name in self._kept or node.op_type in _TYPED:
            return _Types((False,) * len(node.input), (False,) * len(node.output))
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

        def halves(names: Collection[str], formal: Collection[onnx.defs.OpSchema.FormalParameter]) -> tuple[bool, ...]:
            kinds = [list(formal)[min(place, len(formal) - 1)].type_str for place in range(len(names))]
            fits = ["tensor(float16)" in allowed.get(kind, [kind]) for kind in kinds]
            return tuple(fit and self._types.get(name) == _FLOAT for name, fit in zip(names, fits, strict=True))

        inputs = halves(node.input, schema.inputs)
        # An operator that reads no half has no half to give.
        outputs = halves(node.output, schema.outputs) if any(inputs) else (False,) * len(node.output)
        return _Types(inputs, outputs)

    def _read(self, name: str, half: bool) -> str:
        """Return the name under which a tensor is there in the type that is wanted."""
        if self._types.get(name) != _FLOAT:
            if name in self._stored:
                self._initializers[name] = self._stored[name]
            return name
        if name in self._stored:
            return self._stored_as(name, half)
        if (name in self._halves) == half or (self._emulated and not half):
            return name
        if (name, half) not in self._copies:
            copy = f"{name}_fp16" if half else f"{name}_fp32"
            if self._emulated:
                self._round(name, copy)
            else:
                self._cast(name, copy, _HALF if half else _FLOAT)
            self._copies[name, half] = copy
        return self._copies[name, half]

    def _stored_as(self, name: str, half: bool) -> str:
        stored = f"{name}_fp16" if half else name
        if half and stored not in self._initializers:
            values = numpy_helper.to_array(self._stored[name]).astype(np.float16)
            self._initializers[stored] = numpy_helper.from_array(
                values.astype(np.float32) if self._emulated else values, stored
            )
        elif not half:
            self._initializers[name] = self._stored[name]
        return stored

    def _round(self, name: str, rounded: str) -> None:
        self._cast(name, f"{rounded}_as_fp16", _HALF)
        self._cast(f"{rounded}_as_fp16", rounded, _FLOAT)

    def _cast(self, name: str, result: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [name], [result], name=f"cast_{result}", to=kind))
