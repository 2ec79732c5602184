"""Seeded mutations: of any protobuf message field by field, of bytes, of PNG chunks; and hostile ONNX."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

INTEGERS = (0, 1, -1, 2, 3, 7, 127, 255, 256, 65535, 2**24, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "image", "logits", "Conv", "Loop", "If", "Identity", "Resize", "../../../etc/passwd", "\0", "é" * 300)
JSONS = (
    "NaN",
    "1e999",
    "-1",
    "null",
    "{}",
    '"x"',
    "[" * 5000,
    "9" * 5000,
    "[3,100000,100000]",
    "[1e39,0,0]",
    '["\\ud800"]',
)


def mutate_message(message: Message, rng: random.Random) -> None:
    """Change one random field somewhere in a message."""
    fields = list(_fields(message))
    if not fields:
        return
    holder, field = rng.choice(fields)
    if field.is_repeated:
        _mutate_list(holder, field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if rng.random() < 0.5:
            holder.ClearField(field.name)
        else:
            _copy(getattr(holder, field.name), _others(message, field.message_type), rng)
    elif rng.random() < 0.1:
        holder.ClearField(field.name)
    else:
        _set(holder, field, _value(field, getattr(holder, field.name), rng))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, replace or insert bytes."""
    data = bytearray(data)
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 100))
    match rng.randrange(7):
        case 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * rng.randint(1, 40)
        case 5:
            data[at : at + size] = rng.randbytes(size)
        case 6:
            return rng.randbytes(rng.randrange(1, 2 * len(data)))
    return bytes(data)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, repeat or swap chunks, with right checksums, so that decoders look inside."""
    chunks, position = [], 8
    while position < len(data):
        (size,) = struct.unpack(">I", data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], bytearray(data[position + 8 : position + 8 + size])))
        position += size + 12
    at = rng.randrange(len(chunks))
    match rng.randrange(5):
        case 0 | 1:
            for _ in range(rng.randint(1, 3)):
                if chunks[at][1]:
                    chunks[at][1][rng.randrange(len(chunks[at][1]))] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 0x7F, 0xFF))
        case 2:
            chunks.insert(at, chunks[rng.randrange(len(chunks))])
        case 3:
            del chunks[at]
        case 4:
            kind = rng.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"IDAT", b"IEND"))
            chunks.insert(at, (kind, bytearray(rng.randbytes(rng.choice((0, 1, 3, 26, 768))))))
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    return data[:8] + body


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield from _fields(inner)


def _others(message: Message, kind: object) -> list[Message]:
    found = []
    for holder, field in _fields(message):
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is kind:
            value = getattr(holder, field.name)
            found += value if field.is_repeated else [value]
    return found


def _copy(target: Message, sources: list[Message], rng: random.Random) -> None:
    if sources:
        copy = type(target)()
        copy.CopyFrom(rng.choice(sources))
        target.CopyFrom(copy)


def _mutate_list(holder: Message, field: FieldDescriptor, rng: random.Random) -> None:
    values = list(getattr(holder, field.name))
    at = rng.randrange(len(values))
    what = rng.randrange(4)
    if what == 0:
        del values[at]
    elif what == 1:
        values.insert(rng.randrange(len(values) + 1), values[at])
    elif what == 2:
        rng.shuffle(values)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        mutate_message(values[at], rng)
        return
    else:
        values[at] = _value(field, values[at], rng)
    if field.type == FieldDescriptor.TYPE_MESSAGE:  # the old ones go when the field is cleared
        copies = [type(value)() for value in values]
        for copy, value in zip(copies, values, strict=True):
            copy.CopyFrom(value)
        values = copies
    holder.ClearField(field.name)
    getattr(holder, field.name).extend(values)


def _value(field: FieldDescriptor, old: object, rng: random.Random) -> object:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        bits = 31 if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM) else 63
        new = rng.choice((*INTEGERS, old + 1, old - 1, 2 * old))
        return new if -(1 << bits) <= new < 1 << bits else rng.randrange(20)
    if isinstance(old, float):
        return rng.choice(FLOATS)
    if isinstance(old, bytes):
        return mutate_bytes(old, rng) if old else b"x"
    return rng.choice((*TEXTS, *JSONS)) if rng.random() < 0.7 else old + "x"


def _set(holder: Message, field: FieldDescriptor, value: object) -> None:
    try:
        setattr(holder, field.name, value)
    except (ValueError, TypeError):  # a number that is no member of an enumeration
        holder.ClearField(field.name)


def _external(location: str = "../secret.bin") -> TensorProto:
    """A tensor whose bytes are in another file, which is there and long enough."""
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _add(model: ModelProto, *nodes: NodeProto) -> None:
    """Add nodes, the first of which makes ``stolen``; the logits are then mixed with it."""
    last = model.graph.node[-1]
    last.output[0] = "honest"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["honest", "stolen"], ["logits"])])


def _initializer(model: ModelProto) -> None:
    model.graph.initializer.append(_external())
    _add(model)


def _constant(model: ModelProto) -> None:
    _add(model, helper.make_node("Constant", [], ["stolen"], value=_external()))


def _absolute(model: ModelProto) -> None:
    _add(model, helper.make_node("Constant", [], ["stolen"], value=_external("/etc/hostname")))


def _in_memory(model: ModelProto) -> None:
    """onnxruntime's own marker: the location is taken as an address in its memory."""
    model.graph.initializer.append(_external("*/_ORT_MEM_ADDR_/*"))
    _add(model)


def _sparse(model: ModelProto) -> None:
    values = _external()
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    sparse = SparseTensorProto(dims=[4], values=values, indices=indices)
    attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    _add(model, NodeProto(op_type="Constant", output=["stolen"], attribute=[attribute]))


def _subgraph(model: ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=_external())
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([constant], "branch", [], [value])
    on = helper.make_node("Constant", [], ["on"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    _add(model, on, helper.make_node("If", ["on"], ["stolen"], then_branch=branch, else_branch=branch))


def _custom(model: ModelProto) -> None:
    _add(model, helper.make_node("RunMe", ["honest"], ["stolen"], domain="evil.corp"))


def _contributed(model: ModelProto) -> None:
    _add(model, helper.make_node("Gelu", ["honest"], ["stolen"], domain="com.microsoft"))


def _compiled(model: ModelProto) -> None:
    _add(model, helper.make_node("EPContext", ["honest"], ["stolen"], ep_cache_context="../secret.bin", embed_mode=0))


def _endless_function(model: ModelProto) -> None:
    """A function that calls itself, to exhaust the stack."""
    call = helper.make_node("Endless", ["x"], ["y"], domain="local")
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model.functions.append(
        FunctionProto(name="Endless", domain="local", input=["x"], output=["y"], node=[call], opset_import=opset)
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    _add(model, helper.make_node("Endless", ["honest"], ["stolen"], domain="local"))


def _endless_loop(model: ModelProto) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_"]) for name in ("on", "x")],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("on_", TensorProto.BOOL, []), value("x_", TensorProto.FLOAT, None)],
    )
    on = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    _add(
        model,
        helper.make_node("Constant", [], ["go_on"], value=on),
        helper.make_node("Loop", ["", "go_on", "honest"], ["stolen"], body=body),
    )


def _huge_constant(model: ModelProto) -> None:
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [2**22, 2**22])
    _add(
        model,
        helper.make_node("Constant", [], ["huge_shape"], value=shape),
        helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["stolen"], keepdims=0),
    )


def _huge_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[2**31, 2**31]))
    _add(model, helper.make_node("ReduceMax", ["huge"], ["stolen"], keepdims=0))


def _overflowing_initializer(model: ModelProto) -> None:
    dims = [2**32, 2**32]  # 2**64 elements: none, if the product wraps around
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=dims))
    _add(model, helper.make_node("ReduceMax", ["huge"], ["stolen"], keepdims=0))


def _deep(model: ModelProto) -> None:
    """An operator of another domain below 30 levels of branches."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("RunMe", ["honest"], ["y"], domain="evil.corp")], "g", [], [value])
    for _ in range(30):
        node = helper.make_node("If", ["on"], ["y"], then_branch=graph, else_branch=graph.__class__())
        graph = helper.make_graph([node], "g", [], [value])
    _add(model, helper.make_node("If", ["on"], ["stolen"], then_branch=graph, else_branch=graph.__class__()))


HOSTILE: dict[str, Callable[[ModelProto], None]] = {
    attack.__name__.strip("_"): attack
    for attack in (
        _initializer,
        _constant,
        _absolute,
        _in_memory,
        _sparse,
        _subgraph,
        _custom,
        _contributed,
        _compiled,
        _endless_function,
        _endless_loop,
        _huge_constant,
        _huge_initializer,
        _overflowing_initializer,
        _deep,
    )
}
