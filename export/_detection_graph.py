"""From a folded detector of torchvision to an ONNX graph: one picture in, boxes, labels and scores out.

torch.onnx cannot translate torchvision's ``FasterRCNN`` as a whole: non-maximum suppression asks whether there are
boxes at all, and sizes after resizing are products of whole and real numbers. So :class:`_OnePicture` says again, for
one picture, what torchvision's ``rpn.py`` and ``roi_heads.py`` do in eval mode, without such questions; what comes
before it is written in ONNX's own text format, in double precision as Python computes it. (The older exporter of
torch.onnx translates the whole, but computes sizes in single precision, and writes ``If`` nodes.)
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import nms

from ccnn_zoo.metadata import DetectorMetadata

from ._convert import translate

BOXES, LABELS, SCORES = "boxes", "labels", "scores"
DETECTIONS = "detections"
"""Name of the free dimension of the outputs."""

_BETWEEN = ("padded", "resized", "original")  # what the first part of the graph hands to the second
_STRIDE = 32  # of the padding, torchvision's size_divisible
_SMALLEST_BOX = 1e-2  # in pixels, of roi_heads.py

_PREPARE = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
prepare (float[1, 3, height, width] image)
    => (float[1, 3, rows, columns] padded, float[2] resized, float[2] original)
{{
    size = Shape <start = 2> (image)
    exact = Cast <to = 11> (size)
    shorter = ReduceMin <keepdims = 1> (exact)
    longer = ReduceMax <keepdims = 1> (exact)
    growth = Div (min_size, shorter)
    limit = Div (max_size, longer)
    scale = Min (growth, limit)
    scaled = Mul (exact, scale)
    cut = Cast <to = 7> (scaled)
    target = Max (cut, one)
    centred = Sub (image, mean)
    normal = Div (centred, std)
    kept = Shape <end = 2> (image)
    sides = Concat <axis = 0> (kept, target)
    bilinear = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (normal, , , sides)
    more = Add (target, stride_less_one)
    tiles = Div (more, stride)
    full = Mul (tiles, stride)
    missing = Sub (full, target)
    pads = Concat <axis = 0> (no_pads, missing)
    padded = Pad (bilinear, pads)
    resized = Cast <to = 1> (target)
    original = Cast <to = 1> (size)
}}
"""


def convert_detector(detector: FasterRCNN, metadata: DetectorMetadata, opset: int) -> ModelProto:
    """Translate a detector that is folded, in eval mode and has run once.

    Args:
        detector: torchvision's Faster R-CNN.
        metadata: what the file carries.
        opset: version of ONNX's operators.

    Raises:
        ExportError: the backbone has something that torch.onnx cannot translate.
    """
    core = _translated(_OnePicture(detector), metadata.architecture, opset)
    prepare = _prepare(detector, core.ir_version, core.opset_import[0].version)
    joined = onnx.compose.merge_models(
        prepare, core, io_map=[(name, name) for name in ("padded", "resized", "original")]
    )
    # Sizes of what is in between were found for the core alone, under names of its own.
    del joined.graph.value_info[:]
    versions = {entry.domain: entry.version for entry in joined.opset_import}  # onnx lists those of both parts
    del joined.opset_import[:]
    joined.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())
    joined.graph.name = "detector"
    joined.producer_name, joined.producer_version = core.producer_name, core.producer_version
    shapes = {BOXES: (TensorProto.FLOAT, (DETECTIONS, 4))}
    shapes |= {LABELS: (TensorProto.INT64, (DETECTIONS,)), SCORES: (TensorProto.FLOAT, (DETECTIONS,))}
    for output in joined.graph.output:
        output.CopyFrom(helper.make_tensor_value_info(output.name, *shapes[output.name]))
    helper.set_model_props(joined, metadata.to_props())
    return joined


def _translated(network: nn.Module, name: str, opset: int) -> ModelProto:
    example = (torch.zeros(1, 3, 3 * _STRIDE, 4 * _STRIDE), torch.tensor([90.0, 120.0]), torch.tensor([180.0, 240.0]))
    rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
    return translate(
        network.eval(),
        example,
        f"the detector on {name}",
        prefix="detector.",
        input_names=list(_BETWEEN),
        output_names=[BOXES, LABELS, SCORES],
        dynamic_shapes=({2: _STRIDE * rows, 3: _STRIDE * columns}, None, None),
        opset_version=opset,
    )


def _prepare(detector: FasterRCNN, ir_version: int, opset: int) -> ModelProto:
    """Return the graph that resizes, normalises and pads a picture as ``GeneralizedRCNNTransform`` does."""
    transform = detector.transform
    model = onnx.parser.parse_model(_PREPARE.format(ir_version=ir_version, opset=opset))
    constants = {
        "min_size": np.float64([transform.min_size[-1]]),
        "max_size": np.float64([transform.max_size]),
        "mean": np.float32(transform.image_mean).reshape(3, 1, 1),
        "std": np.float32(transform.image_std).reshape(3, 1, 1),
        "one": np.int64([1]),
        "stride": np.int64([_STRIDE]),
        "stride_less_one": np.int64([_STRIDE - 1]),
        "no_pads": np.zeros(6, np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.compose.add_prefix(model, "prepare_", rename_inputs=False, rename_outputs=False, inplace=True)
    return model


class _OnePicture(nn.Module):
    """Faster R-CNN in eval mode on one picture that is resized, normalised and padded.

    Shape:
        - padded: (1, 3, H, W), H and W multiples of 32
        - resized, original: (2,), height and width of the picture in it, and before it was resized
        - Output: boxes (n, 4) in pixels of the original, labels (n,), scores (n,), the highest first
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, padded: Tensor, resized: Tensor, original: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.detector.backbone(padded)
        proposals = self._proposals(padded, features, resized)
        boxes, labels, scores = self._detections(features, proposals, resized)
        height, width = (original / resized).unbind()
        return boxes * torch.stack([width, height, width, height]), labels, scores

    def _proposals(self, padded: Tensor, features: dict[str, Tensor], size: Tensor) -> Tensor:
        """See ``RegionProposalNetwork.filter_proposals``."""
        rpn, levels = self.detector.rpn, list(features.values())
        logits, deltas = rpn.head(levels)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
        anchors = rpn.anchor_generator(ImageList(padded, [(0, 0)]), levels)[0]
        objectness, deltas = concat_box_prediction_layers(logits, deltas)
        objectness, first, chosen = objectness.flatten(), 0, []
        for level, count in enumerate(counts):
            part = objectness.narrow(0, first, count)
            index = part.topk(torch.sym_min(rpn.pre_nms_top_n(), count)).indices
            chosen.append((index + first, torch.full_like(index, level)))
            first = first + count
        index, levels_of = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        boxes = _clipped(rpn.box_coder.decode_single(deltas[index], anchors[index]), size)
        scores = objectness[index].sigmoid()
        kept = _large(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        boxes, scores, levels_of = _chosen(kept, boxes, scores, levels_of)
        return boxes[_suppressed(boxes, scores, levels_of, rpn.nms_thresh)[: rpn.post_nms_top_n()]]

    def _detections(
        self, features: dict[str, Tensor], proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``RoIHeads.postprocess_detections``."""
        heads = self.detector.roi_heads
        regions = heads.box_head(heads.box_roi_pool(features, [proposals], [(0, 0)]))
        logits, deltas = heads.box_predictor(regions)
        classes = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, proposals).unflatten(1, (classes, 4))
        boxes = _clipped(boxes[:, 1:].flatten(0, 1), size)
        scores = logits.softmax(1)[:, 1:].flatten()
        labels = torch.arange(1, classes).expand(logits.shape[0], -1).flatten()
        kept = (scores > heads.score_thresh) & _large(boxes, _SMALLEST_BOX)
        boxes, scores, labels = _chosen(kept, boxes, scores, labels)
        index = _suppressed(boxes, scores, labels, heads.nms_thresh)[: heads.detections_per_img]
        return boxes[index], labels[index], scores[index]


def _clipped(boxes: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), torch.stack([size[1], size[0], size[1], size[0]]))


def _large(boxes: Tensor, smallest: float) -> Tensor:
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    return (width >= smallest) & (height >= smallest)


def _chosen(kept: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    index = torch.where(kept)[0]
    return tuple(value[index] for value in values)


def _suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return what non-maximum suppression within each group leaves; groups are moved apart, as torchvision does it."""
    largest = F.pad(boxes.flatten(), (0, 1)).max()  # also of no boxes at all
    apart = groups.to(boxes.dtype) * (largest + 1)
    return nms(boxes + apart[:, None], scores, threshold)
