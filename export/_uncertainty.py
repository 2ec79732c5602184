"""Numbers of confidence into an ONNX file, and outputs that are computed from them: plain operators at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ccnn_zoo._files import replacing
from ccnn_zoo.errors import ExportError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.uncertainty import Confidence, doubt, fit, probabilities

from ._graph import BRANCH_OUTPUT, DEFAULT_OPSET, OUTPUT, read_network
from ._probe import Probe
from ._session import Run, session_of

PROPERTY = "confidence"
OUTPUTS = ("probabilities", "branch_probabilities", "uncertainty", "ood_score")
TOLERANCE = 1e-5
"""Allowed difference of a further output from numpy's in double precision, relative to its largest value or to 1."""

_PREFIX = "confidence/"
_TINY = float(np.finfo(np.float32).tiny)


def fitted(files: Mapping[str, Run], held_out: Probe) -> dict[str, Confidence]:
    """Fit the numbers of each file by its own logits on the same labelled images, which are read once.

    Raises:
        ConfigurationError: they are too few.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in files}
    targets = []
    for images, classes in held_out.batches():
        targets.append(classes)
        for name, run in files.items():
            found[name].append(run(images))
    classes = torch.cat(targets).numpy()
    return {name: fit(_joined(parts, OUTPUT), classes, _joined(parts, BRANCH_OUTPUT)) for name, parts in found.items()}


def _joined(parts: list[dict[str, np.ndarray]], output: str) -> np.ndarray | None:
    return np.concatenate([part[output] for part in parts], axis=-2) if output in parts[0] else None


def add_confidence(
    path: str | os.PathLike[str],
    confidence: Confidence,
    output: str | os.PathLike[str] | None = None,
    *,
    outputs: bool = False,
) -> Path:
    """Write the numbers that were fitted for an exported file into it.

    With ``outputs`` the graph gives them too, beside its logits, which stay as they are, by ONNX's own operators, so
    that any runtime does:

    - ``probabilities``, (batch, classes): softmax of the logits over the temperature;
    - ``branch_probabilities``, (K, batch, classes): the same of each branch, where the file has ``branch_logits``;
    - ``uncertainty``, (batch, 1 or 2): the entropy of the probabilities, and, where there are branches, their mutual
      information, in nats;
    - ``ood_score``, (batch,): 0 to 100, how unlike the held-out pictures one is: the percentile of its energy, or of
      its mutual information if that is larger (where the logits are logarithms of probabilities, of the mean energy of
      the branches, or of the entropy where the file has none).

    They are compared with :mod:`ccnn_zoo.uncertainty`, which knows no ONNX, before the file takes its name.

    Args:
        path: a file that this package exported. What an earlier call wrote is replaced.
        confidence: what :func:`ccnn_zoo.uncertainty.fit` found for this very file.
        output: where to write; None replaces ``path``.
        outputs: whether the graph shall give them.

    Returns:
        The file that was written.

    Raises:
        IntegrityError: the file is no ONNX network, or holds what is refused.
        MetadataError: it carries no labels and preprocessing.
        ExportError: its operators are older than opset 18, or an output differs from numpy's.
        RepositoryError: the file cannot be written.
    """
    path = Path(path)
    model = read_network(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = ModelMetadata.from_props({**properties, PROPERTY: confidence.to_json()}, source=str(path))
    _remove(model.graph)
    if outputs:
        _append(model, metadata)
    helper.set_model_props(model, {**properties, PROPERTY: confidence.to_json()})
    target = path if output is None else Path(output)
    with replacing(target) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        if outputs:
            _check(path, temporary, metadata)
    return target


def _remove(graph: GraphProto) -> None:
    """Take away what an earlier call has appended."""
    made = {name for node in graph.node if node.name.startswith(_PREFIX) for name in node.output}
    for things, ours in (
        (graph.node, lambda node: node.name.startswith(_PREFIX)),
        (graph.initializer, lambda tensor: tensor.name.startswith(_PREFIX)),
        (graph.output, lambda value: value.name in made),
    ):
        kept = [thing for thing in things if not ours(thing)]
        del things[:]
        things.extend(kept)


def _append(model: ModelProto, metadata: ModelMetadata) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", 0) < DEFAULT_OPSET:
        raise ExportError(
            f"the file has opset {opsets.get('', 0)}, the further outputs need {DEFAULT_OPSET}. Export it again with a "
            "newer one, or leave the outputs out: the runtime computes them from the numbers."
        )
    graph, writer = model.graph, _Writer(metadata.confidence)
    taken = {name for node in graph.node for name in node.output} & set(OUTPUTS)
    if taken:
        raise ExportError(
            f"the file has {', '.join(sorted(taken))} of its own. Leave the outputs out: the runtime computes them "
            "from the numbers."
        )
    logits = graph.output[0]
    batch = logits.type.tensor_type.shape.dim[0]
    sides = [batch.dim_value or batch.dim_param, len(metadata.labels)]
    branched = any(output.name == BRANCH_OUTPUT for output in graph.output)
    made = writer.write(writer.float_of(logits), BRANCH_OUTPUT if branched else None)
    shapes = {
        "probabilities": sides,
        "branch_probabilities": [metadata.branches, *sides],
        "uncertainty": [sides[0], 2 if branched else 1],
        "ood_score": sides[:1],
    }
    graph.node.extend(writer.nodes)
    graph.initializer.extend(writer.constants)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in made)


class _Writer:
    """Writes the nodes; each method returns the name of what it makes."""

    def __init__(self, numbers: Confidence) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._quantiles = numbers.quantiles
        self._temperature = self._constant("temperature", np.float32(numbers.temperature))
        self._axes: dict[int, str] = {}  # those in use: onnxruntime warns of others

    def write(self, logits: str, branch_logits: str | None) -> list[str]:
        """Write all outputs; return their names in order."""
        made = ["probabilities"]
        doubts = [self._entropy_of_logits(self._scaled(logits), probabilities="probabilities")]
        scores = {"energy": self._energy(logits), "entropy": doubts[0]}
        if branch_logits is not None:
            made.append("branch_probabilities")
            scores["mutual_information"] = self._mutual_information(self._scaled(branch_logits))
            doubts.append(scores["mutual_information"])
            if "branch_energy" in self._quantiles:
                each = self._energy(branch_logits)
                scores["branch_energy"] = self._node("ReduceMean", [each, self._axis(0)], keepdims=0)
        self._node("Concat", doubts, "uncertainty", axis=1)
        ranks = [self._percentile(scores[name], name) for name in self._quantiles if name in scores]
        self._node("Max", ranks, "ood_score")
        return [*made, "uncertainty", "ood_score"]

    def _energy(self, logits: str) -> str:
        # The largest log-softmax is the largest logit less the log-sum-exp.
        largest = self._node("ReduceMax", [self._node("LogSoftmax", [logits], axis=-1), self._axis(-1)], keepdims=1)
        return self._node("Sub", [largest, self._node("ReduceMax", [logits, self._axis(-1)], keepdims=1)])

    def _percentile(self, score: str, name: str) -> str:
        """From (batch, 1) to (batch,): how many quantiles lie below."""
        known = self._constant(f"quantiles_{name}", np.asarray(self._quantiles[name], np.float32))
        below = self._node("Cast", [self._node("Less", [known, score])], to=TensorProto.FLOAT)
        count = self._node("ReduceSum", [below, self._axis(-1)], keepdims=0)
        return self._node("Min", [count, self._constant(f"all_{name}", np.float32(100))])

    def float_of(self, value: onnx.ValueInfoProto) -> str:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            return value.name
        return self._node("Cast", [value.name], to=TensorProto.FLOAT)

    def _scaled(self, logits: str) -> str:
        return self._node("Div", [logits, self._temperature])

    def _entropy_of_logits(self, scaled: str, probabilities: str, *, keep: bool = True) -> str:
        self._node("Softmax", [scaled], probabilities, axis=-1)
        product = self._node("Mul", [probabilities, self._node("LogSoftmax", [scaled], axis=-1)])
        return self._node("Neg", [self._node("ReduceSum", [product, self._axis(-1)], keepdims=int(keep))])

    def _mutual_information(self, scaled: str) -> str:
        own = self._entropy_of_logits(scaled, "branch_probabilities", keep=False)
        own = self._node("ReduceMean", [own, self._axis(0)], keepdims=0)
        mean = self._node("ReduceMean", ["branch_probabilities", self._axis(0)], keepdims=0)
        log = self._node("Log", [self._node("Max", [mean, self._constant("tiny", np.float32(_TINY))])])
        total = self._node("ReduceSum", [self._node("Mul", [mean, log]), self._axis(-1)], keepdims=0)
        information = self._node("Sub", [self._node("Neg", [total]), own])
        positive = self._node("Max", [information, self._constant("zero", np.float32(0))])
        return self._node("Unsqueeze", [positive, self._axis(1)])

    def _node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: int) -> str:
        name = f"{_PREFIX}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def _axis(self, axis: int) -> str:
        if axis not in self._axes:
            self._axes[axis] = self._constant(f"axis_{axis}", np.array([axis], np.int64))
        return self._axes[axis]

    def _constant(self, name: str, value: np.generic | np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"{_PREFIX}{name}"))
        return f"{_PREFIX}{name}"


def _check(before: Path, after: Path, metadata: ModelMetadata) -> None:
    """Compare the outputs on noise: the earlier ones with what they were, the further ones with numpy's."""
    old, new = session_of(before), session_of(after)
    image = old.get_inputs()[0]
    sides = [side if isinstance(side, int) else usual for side, usual in zip(image.shape, (3, 64, 64, 64), strict=True)]
    noise = np.random.default_rng(0)
    dtype = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(image.type, np.float32)
    pixels = noise.integers(0, 256, sides) if dtype == np.uint8 else noise.standard_normal(sides)
    given, found = (
        dict(zip((o.name for o in run.get_outputs()), run.run(None, {image.name: pixels.astype(dtype)}), strict=True))
        for run in (old, new)
    )
    wanted = {name: values for name, values in given.items() if name not in OUTPUTS}
    first = next(iter(wanted))
    branches = wanted.get(BRANCH_OUTPUT)
    scores = doubt(wanted[first], branches, metadata.confidence)
    doubts = [scores.entropy] if branches is None else [scores.entropy, scores.mutual_information]
    wanted |= {
        "probabilities": scores.probabilities,
        "uncertainty": np.stack(doubts, 1),
        "ood_score": scores.percentile,
    }
    if branches is not None:
        wanted["branch_probabilities"] = probabilities(branches, metadata.confidence.temperature)
    for name, values in wanted.items():
        off = np.abs(found[name] - values).max() if found[name].shape == values.shape else np.inf
        # A score that lies on a quantile, within rounding, may be counted on either side of it.
        allowed = 1.0 if name == "ood_score" else TOLERANCE * max(1.0, np.abs(values).max())
        if not off <= allowed:
            raise ExportError(f"the output {name!r} differs by {off:.2g} from what it must be; please report this")
