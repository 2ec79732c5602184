"""VOC's average precision against cases worked out by hand and against other implementations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ccnn_zoo.detection import VOC_LABELS, AnnotatedPicture, coco_evaluate, voc_evaluate
from ccnn_zoo.detection._voc_protocol import area_under_curve, eleven_point

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], np.float32)
NOWHERE = [0, 50, 10, 60]


def picture(boxes, labels, ignored=None, path="p") -> AnnotatedPicture:
    count = len(labels)
    ignored = np.zeros(count, dtype=bool) if ignored is None else np.array(ignored)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return AnnotatedPicture(path, 100, 100, boxes, np.array(labels, np.int64), ignored)


def found(boxes, scores, labels=None) -> dict[str, np.ndarray]:
    labels = np.ones(len(scores), np.int64) if labels is None else np.array(labels)
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "scores": np.array(scores), "labels": labels}


def average_precision(detections, pictures) -> tuple[float, float]:
    result = voc_evaluate([detections] if isinstance(detections, dict) else detections, pictures, ["cell"])
    return result.eleven_point[0], result.area[0]


# Cases worked out by hand


def test_everything_found_is_1_and_nothing_found_is_0():
    truth = [picture(BOXES, [1] * 5)]
    assert average_precision(found(BOXES, [0.9, 0.8, 0.7, 0.6, 0.5]), truth) == (1.0, 1.0)
    assert average_precision(found([], []), truth) == (0.0, 0.0)
    assert average_precision(found([NOWHERE], [0.9]), truth) == (0.0, 0.0)


def test_a_curve_of_five_objects():
    # By score: right, wrong, right, wrong, wrong, right; of five objects.
    # Precision 1/1, 1/2, 2/3, 2/4, 2/5, 3/6 at recalls 0.2, 0.2, 0.4, 0.4, 0.4, 0.6.
    # Highest at this recall and above: 1 up to 0.2, 2/3 up to 0.4, 1/2 up to 0.6, 0 beyond.
    boxes = [BOXES[0], NOWHERE, BOXES[1], NOWHERE, NOWHERE, BOXES[2]]
    eleven, area = average_precision(found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), [picture(BOXES, [1] * 5)])
    assert eleven == pytest.approx((3 * 1 + 2 * 2 / 3 + 2 * 1 / 2) / 11)
    assert area == pytest.approx(0.2 * 1 + 0.2 * 2 / 3 + 0.2 * 1 / 2)


def test_a_recall_of_three_tenths_counts_at_three_tenths():
    # 3 of 10 found, all right: the precision is 1 at 0, 0.1, 0.2 and 0.3, where 3 * 0.1 > 0.3 in floating point.
    assert eleven_point(np.array([True] * 3), 10) == pytest.approx(4 / 11)
    assert area_under_curve(np.array([True] * 3), 10) == pytest.approx(0.3)


def test_a_second_detection_of_an_object_is_wrong():
    boxes = [BOXES[0], BOXES[0] + 1, BOXES[1]]
    eleven, area = average_precision(found(boxes, [0.9, 0.8, 0.7]), [picture(BOXES[:2], [1, 1])])
    assert area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert eleven == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # The better box does not save it: VOC takes detections by score, not by overlap.
    swapped = found([BOXES[0] + 1, BOXES[0]], [0.9, 0.8])
    assert average_precision(swapped, [picture(BOXES[:1], [1])]) == (1.0, 1.0)


def test_difficult_objects_neither_count_nor_hurt():
    truth = [picture(BOXES[:3], [1] * 3, ignored=[False, True, False])]
    # The detections of the difficult object vanish: right, right of two objects.
    boxes, scores = [BOXES[1], BOXES[0], BOXES[1], BOXES[2]], [0.9, 0.8, 0.7, 0.6]
    assert average_precision(found(boxes, scores), truth) == (1.0, 1.0)
    only = voc_evaluate([found(BOXES[:1], [0.9])], [picture(BOXES[:1], [1], ignored=[True])], ["cell"])
    assert np.isnan(only.eleven_point[0])


@pytest.mark.parametrize(("shift", "right"), [(3.3, True), (3.4, False)])
def test_half_an_overlap_is_enough(shift, right):
    # Boxes of 10 x 10, one moved to the side by s: IoU = (10 - s) / (10 + s), which is 0.5 at 10 / 3.
    moved = BOXES[0] + np.array([shift, 0, shift, 0])
    assert average_precision(found([moved], [0.9]), [picture(BOXES[:1], [1])]) == ((1.0, 1.0) if right else (0.0, 0.0))


def test_an_overlap_of_exactly_one_half_is_enough():
    # 10 x 10 in 10 x 20.
    assert average_precision(found([[0, 0, 10, 20]], [0.9]), [picture(BOXES[:1], [1])]) == (1.0, 1.0)


def test_scores_are_compared_over_all_pictures():
    truth = [picture(BOXES[:1], [1]), picture(BOXES[:1], [1])]
    _, area = average_precision([found([NOWHERE, BOXES[0]], [0.8, 0.3]), found([BOXES[0]], [0.9])], truth)
    assert area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_classes_are_apart_and_the_mean_is_over_those_that_are_there():
    truth = [picture(BOXES[:2], [1, 2])]
    result = voc_evaluate([found(BOXES[:2], [0.9, 0.8], [1, 1])], truth, ["one", "two", "three"])
    assert result.area[:2] == (1.0, 0.0)
    assert np.isnan(result.area[2])
    assert result.map_percent == result.area_map_percent == 50.0


def test_the_labels_are_in_the_order_of_table_4():
    columns = (
        *("aero", "bic", "bir", "boa", "bot", "bus", "car", "cat", "cha", "cow"),
        *("dta", "dog", "hor", "mbi", "per", "pln", "she", "sof", "tra", "tv"),
    )
    short = {"dta": "diningtable", "mbi": "motorbike", "pln": "pottedplant"}
    assert len(VOC_LABELS) == 20
    assert all(label.startswith(short.get(column, column)) for label, column in zip(VOC_LABELS, columns, strict=True))


# Other implementations, on random boxes


def random_case(seed: int) -> tuple[list[AnnotatedPicture], list[dict[str, np.ndarray]]]:
    """Pictures with objects of three kinds, some difficult, and detections near some of them and elsewhere."""
    rng = np.random.default_rng(seed)
    pictures, detections = [], []
    for number in range(12):
        count = int(rng.integers(0, 8))
        corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(8, 40, (count, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1).astype(np.float32), rng.integers(1, 4, count)
        pictures.append(picture(boxes, labels, rng.random(count) < 0.2, path=str(number)))
        picked = rng.integers(0, count, 2 * count) if count else np.zeros(0, int)
        near = boxes[picked] + rng.normal(0, 2.5, (len(picked), 4)).astype(np.float32)
        corner, side = rng.uniform(0, 60, (3, 2)), rng.uniform(8, 40, (3, 2))
        shown = np.concatenate([near, np.concatenate([corner, corner + side], 1).astype(np.float32)])
        said = np.concatenate([labels[picked], rng.integers(1, 4, 3)])
        detections.append(found(shown, rng.permutation(len(said)) / 50 + number / 1000, said))
    return pictures, detections


def devkit(pictures, detections, label) -> tuple[float, float]:
    """Transcription of VOCevaldet.m and VOCap.m, one detection of the whole list after the other, in plain Python."""
    listed = [
        (float(score), number, [float(edge) for edge in box])
        for number, each in enumerate(detections)
        for box, score, said in zip(each["boxes"], each["scores"], each["labels"], strict=True)
        if said == label
    ]
    listed.sort(key=lambda item: -item[0])
    objects = {
        number: [
            {"box": [float(edge) for edge in box], "difficult": bool(hard), "found": False}
            for box, said, hard in zip(each.boxes, each.labels, each.ignored, strict=True)
            if said == label
        ]
        for number, each in enumerate(pictures)
    }
    total = sum(not each["difficult"] for some in objects.values() for each in some)
    true, false = [], []
    for _, number, box in listed:
        best, chosen = -np.inf, None
        for each in objects[number]:
            other = each["box"]
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if width > 0 and height > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, chosen = overlap, each
        if best >= 0.5:
            if not chosen["difficult"]:
                true.append(not chosen["found"])
                false.append(chosen["found"])
                chosen["found"] = True
            else:
                true.append(False)
                false.append(False)
        else:
            true.append(False)
            false.append(True)
    hits, misses = np.cumsum(true), np.cumsum(false)
    recall, precision = hits / total, hits / np.maximum(hits + misses, 1)
    curve = list(zip(recall, precision, strict=True))
    eleven = sum(max((p for r, p in curve if r >= t / 10 - 1e-12), default=0) for t in range(11))
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    area = sum((mrec[i + 1] - mrec[i]) * mpre[i + 1] for i in range(len(mrec) - 1))
    return eleven / 11, area


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_the_development_kit(seed):
    pictures, detections = random_case(seed)
    result = voc_evaluate(detections, pictures, ["a", "b", "c"])
    for label in (1, 2, 3):
        eleven, area = devkit(pictures, detections, label)
        assert 0 < area < 1
        assert result.eleven_point[label - 1] == pytest.approx(eleven)
        assert result.area[label - 1] == pytest.approx(area)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_close_to_pycocotools(seed):
    """pycocotools samples the curve at 101 recalls and matches by overlap: close to, never equal to, VOC's area."""
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    pictures, detections = [], []
    for number in range(60):  # objects far apart, so that both ways of matching agree
        corner = np.array([[20, 20], [220, 20], [20, 220], [220, 220]]) + rng.uniform(0, 40, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(40, 120, (4, 2))], 1).astype(np.float32)
        pictures.append(picture(boxes, [1] * 4))
        shift = rng.normal(0, 12, (4, 4)).astype(np.float32)
        detections.append(found(boxes + shift, rng.random(4) + number * 1e-6))
    ours = voc_evaluate(detections, pictures, ["a"])
    theirs = coco_evaluate(detections, pictures, ["a"])
    assert 20 < theirs["AP50"] < 95
    assert ours.area_map_percent == pytest.approx(theirs["AP50"], abs=1.0)
    assert theirs["AP"] < theirs["AP50"]


def test_cocos_figures_of_a_perfect_detector_and_of_none():
    pytest.importorskip("pycocotools")
    truth = [picture(BOXES, [1] * 5, ignored=[True, False, False, False, False])]
    perfect = coco_evaluate([found(BOXES, [0.9, 0.8, 0.7, 0.6, 0.5])], truth, ["cell"])
    assert perfect["AP"] == perfect["AP50"] == perfect["AP_small"] == pytest.approx(100)
    assert np.isnan(perfect["AP_large"])
    assert coco_evaluate([found([], [])], truth, ["cell"])["AP"] == 0


def test_coco_sorts_objects_by_their_annotated_area(tmp_path):
    """A thin diagonal in a box of 100 x 100 is small by its mask, 900 square pixels."""
    large = picture([[0, 0, 100, 100]], [1])
    small = replace(large, areas=np.array([900.0]))
    sizes = []
    for annotated in (large, small):
        figures = coco_evaluate([found([[0, 0, 100, 100]], [0.9], [1])], [annotated], ["line"])
        sizes.append([name for name in ("AP_small", "AP_medium", "AP_large") if figures[name] > 99])
    assert sizes == [["AP_large"], ["AP_small"]]


def test_tensors_are_taken_as_they_come_from_a_detector():
    boxes = torch.tensor(BOXES)
    each = {"boxes": boxes, "labels": torch.ones(5, dtype=torch.long), "scores": torch.linspace(0.9, 0.5, 5)}
    assert average_precision(each, [picture(BOXES, [1] * 5)]) == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_mean_average_precision(seed):
    """The library counts difficult objects as wanted, so there are none here; its boxes include their last pixel."""
    judge = pytest.importorskip("mean_average_precision").MetricBuilder.build_evaluation_metric("map_2d", num_classes=3)
    pictures, detections = random_case(seed)
    pictures = [replace(each, ignored=np.zeros_like(each.ignored)) for each in pictures]
    for truth, said in zip(pictures, detections, strict=True):
        nothing = np.zeros((len(truth.labels), 2))
        objects = np.column_stack([truth.boxes - [0, 0, 1, 1], truth.labels - 1, nothing])
        judge.add(np.column_stack([said["boxes"] - [0, 0, 1, 1], said["labels"] - 1, said["scores"]]), objects)
    ours = voc_evaluate(detections, pictures, ["a", "b", "c"])
    area = judge.value(iou_thresholds=0.5)[0.5]
    eleven = judge.value(iou_thresholds=0.5, recall_thresholds=np.arange(11) / 10)[0.5]
    for number in range(3):
        assert ours.area[number] == pytest.approx(area[number]["ap"], abs=1e-5)
        assert ours.eleven_point[number] == pytest.approx(eleven[number]["ap"], abs=1e-5)
