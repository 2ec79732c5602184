"""A Triton Inference Server model repository from one ONNX file.

Source: Triton's ``model_config.proto`` and the README of its onnxruntime backend, which names the accelerators' keys.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx

from ccnn_zoo._files.folders import is_there, replacing_folder
from ccnn_zoo._files.onnx_contents import refused_network
from ccnn_zoo._tasks import task_of_properties
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError
from ccnn_zoo.metadata import Metadata

from ._pbtxt import Block, Enum, render
from ._triton_options import TritonOptions

DEFAULT_BATCH_SIZE = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TYPES = {
    onnx.TensorProto.FLOAT: Enum("TYPE_FP32"),
    onnx.TensorProto.FLOAT16: Enum("TYPE_FP16"),
    onnx.TensorProto.UINT8: Enum("TYPE_UINT8"),
    onnx.TensorProto.INT64: Enum("TYPE_INT64"),
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    data_type: Enum
    shape: tuple[int, ...]  # -1 where the graph leaves a size open


def write_triton(
    network: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: TritonOptions | None = None,
) -> Path:
    """Write a network into a Triton model repository: ``FOLDER/NAME/config.pbtxt``, ``labels.txt``, ``1/model.onnx``.

    Inputs, outputs and types are those of the graph: uint8 pictures (height, width, channels) where the
    preprocessing is in it, normalised float32 values (channels, height, width) where it is not. A model of that name
    that Triton could load is replaced as a whole; the folder takes its name when it is complete.

    Args:
        network: an ONNX file of ours.
        folder: the model repository, ``tritonserver --model-repository``.
        name: the model's name; by default the network's architecture, with ``_fp16`` or ``_int8`` where the file is so.
        options: how Triton shall run it.

    Returns:
        the model's folder.

    Raises:
        ConfigurationError: the name or an option does not fit the network; names it.
        IntegrityError: the file is no ONNX network, or keeps weights in other files.
        MetadataError: the file carries no labels.
        RepositoryError: the folder cannot be written, or something else stands there.
    """
    network, folder = Path(network), Path(folder)
    options = options or TritonOptions()
    graph, properties = _read(network)
    task = task_of_properties(properties)
    metadata = task.metadata.from_props(properties, str(network))
    if name is None:
        precision = properties.get("precision", "fp32")
        name = metadata.architecture if precision == "fp32" else f"{metadata.architecture}_{precision}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"name must be letters, digits, '_', '-' or '.', got {name!r}")
    config = render(_config(name, graph, metadata, options, classifies=task.classifies))
    target = folder / name
    with replacing_folder(target, str(target), lambda: _refuse_foreign(target)) as temporary:
        (temporary / "1").mkdir()
        shutil.copyfile(network, temporary / "1" / "model.onnx")
        (temporary / "labels.txt").write_text("".join(f"{label}\n" for label in metadata.labels))
        (temporary / "config.pbtxt").write_text(config)
    return target


def _config(
    name: str, graph: onnx.GraphProto, metadata: Metadata, options: TritonOptions, *, classifies: bool
) -> Block:
    inputs = [_tensor(value) for value in graph.input]
    outputs = [_tensor(value) for value in graph.output]
    # What Triton can name the best classes of.
    of_classes = {outputs[0].name, "probabilities"} if classifies else set()
    open_batch = all(tensor.shape[0] == -1 for tensor in (*inputs, *outputs))
    batch_size = _batch_size(open_batch, options)
    if options.cuda_graph and any(-1 in tensor.shape for tensor in (*inputs, *outputs)):
        raise ConfigurationError(
            "cuda_graph=true needs a network whose sizes are all fixed, the batch included. Export it with a fixed "
            "batch, or leave cuda_graph out."
        )
    config: Block = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": batch_size,
        "input": [_described(tensor, batch_size) for tensor in inputs],
        "output": [_described(tensor, batch_size, label_file=tensor.name in of_classes) for tensor in outputs],
        "instance_group": [_instance_group(options)],
        "optimization": _optimization(options),
        "parameters": _parameters(options, metadata),
    }
    if batch_size:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": options.queue_delay_us}
    return config


def _batch_size(open_batch: bool, options: TritonOptions) -> int:
    """Return Triton's ``max_batch_size``; 0 says that the shapes in the configuration are whole ones."""
    if open_batch:
        return options.max_batch_size or DEFAULT_BATCH_SIZE
    if options.max_batch_size is not None:
        raise ConfigurationError(
            f"max_batch_size={options.max_batch_size} needs a network whose inputs and outputs all leave their first "
            "size open. Export it with any batch and without branch outputs, or leave max_batch_size out."
        )
    return 0


def _described(tensor: _Tensor, batch_size: int, *, label_file: bool = False) -> Block:
    dims = list(tensor.shape[1:] if batch_size else tensor.shape)
    described: Block = {"name": tensor.name, "data_type": tensor.data_type, "dims": dims or [1]}
    if not dims:  # one value a picture: to clients it is (batch, 1), since Triton wants a size beside the batch
        described["reshape"] = {"shape": []}
    if label_file:
        described["label_filename"] = "labels.txt"
    return described


def _instance_group(options: TritonOptions) -> Block:
    group: Block = {"count": options.instances, "kind": Enum(f"KIND_{options.kind.upper()}")}
    if options.gpus:
        group["gpus"] = list(options.gpus)
    return group


def _optimization(options: TritonOptions) -> Block:
    if options.accelerator == "none":
        return {}
    parameters = {}
    if options.fp16:
        parameters["precision_mode"] = "FP16"
    if options.cuda_graph:
        parameters["trt_cuda_graph_enable" if options.accelerator == "tensorrt" else "enable_cuda_graph"] = "1"
    accelerator: Block = {
        "name": options.accelerator,
        "parameters": [{"key": key, "value": value} for key, value in parameters.items()],
    }
    device = "cpu" if options.accelerator == "openvino" else "gpu"
    optimization: Block = {"execution_accelerators": {f"{device}_execution_accelerator": [accelerator]}}
    if options.cuda_graph:
        optimization["cuda"] = {"graphs": True}
    return optimization


def _parameters(options: TritonOptions, metadata: Metadata) -> list[Block]:
    """Return Triton's free parameters: one for the backend, and for clients how pictures are to be prepared."""
    values = {f"ccnn_zoo.{key}": value for key, value in metadata.to_props().items() if key != "labels"}
    if options.threads is not None:
        values["intra_op_thread_count"] = str(options.threads)
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def _read(network: Path) -> tuple[onnx.GraphProto, dict[str, str]]:
    if not network.is_file():
        raise RepositoryError(f"{network}: no such file. Name an exported .onnx file.")
    problem = refused_network(network)
    if problem is not None:
        raise IntegrityError(f"{network} {problem}, which Triton shall not get. Download or export it again.")
    try:
        model = onnx.load(network, load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds, which differ between its implementations
        raise IntegrityError(f"{network} is no ONNX network ({error}). Download or export it again.") from error
    return model.graph, {entry.key: entry.value for entry in model.metadata_props}


def _tensor(value: onnx.ValueInfoProto) -> _Tensor:
    tensor = value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in tensor.shape.dim)
    if tensor.elem_type not in _TYPES or not shape:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ConfigurationError(
            f"{value.name} is {kind} of shape {shape}; a classifier takes and gives batches of float or uint8 values. "
            "Export it with `ccnn export`."
        )
    return _Tensor(value.name, _TYPES[tensor.elem_type], shape)


def _refuse_foreign(target: Path) -> None:
    if is_there(target) and not (target / "config.pbtxt").is_file():
        raise RepositoryError(f"{target} exists and is no Triton model. Choose another folder or name.")
