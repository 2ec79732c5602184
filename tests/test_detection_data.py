"""Contract of ccnn_zoo.detection.load_detection_data: what is read is what was annotated, and bad data are named."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_folders import HEIGHT, WIDTH, annotation, coco_folder, draw, voc_folder
from torchvision.datasets import VOCDetection

from ccnn_zoo.detection import VOC_LABELS, load_detection_data
from ccnn_zoo.detection._data import DetectionView
from ccnn_zoo.errors import ConfigurationError

VOC = "VOCdevkit/VOC2007"


def edges(picture) -> list[tuple]:
    return [tuple(int(edge) for edge in box) for box in picture.boxes]


def rewrite(root: Path, number: int, boxes=None, **options) -> Path:
    path = root / VOC / "Annotations" / f"{number:06d}.xml"
    path.write_text(annotation(f"{number:06d}.jpg", draw(number)[1] if boxes is None else boxes, **options))
    return path


# What is read


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_pictures_boxes_and_classes_are_those_that_were_drawn(tmp_path, layout):
    folder = voc_folder(tmp_path) if layout == "voc" else coco_folder(tmp_path)
    data = load_detection_data(f"{layout}:{folder}")
    train, test = (8, 4) if layout == "voc" else (3, 2)
    assert (len(data.train), len(data.test)) == (train, test)
    assert data.labels == (("disc", "square") if layout == "voc" else ("square", "disc"))  # COCO's: by id
    for number, picture in enumerate([*data.train, *data.test]):
        _, boxes = draw(number)
        assert (picture.width, picture.height) == (WIDTH, HEIGHT)
        assert edges(picture) == [box[1:] for box in boxes]
        assert [data.labels[label - 1] for label in picture.labels] == [box[0] for box in boxes]
        assert not picture.ignored.any()


def test_a_box_encloses_the_pixels_that_were_drawn(tmp_path):
    data = load_detection_data(f"voc:{voc_folder(tmp_path)}")
    images, targets = DetectionView(data.train).__getitems__([0, 1])
    for image, target in zip(images, targets, strict=True):
        square = target["boxes"][target["labels"] == data.labels.index("square") + 1][0].int().tolist()
        dark = (image.mean(0) < 0.25).nonzero()  # the square is dark, and nothing else
        rows, columns = dark[:, 0], dark[:, 1]
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert max(abs(int(a) - b) for a, b in zip(found, square, strict=True)) <= 1  # JPEG


def test_the_blood_cells_are_those_of_torchvision(real_data):
    data = load_detection_data(f"voc:{real_data / 'bccd'}")
    reference = VOCDetection(real_data / "bccd", year="2007", image_set="trainval", download=False)
    assert (len(data.train), len(data.test), data.labels) == (292, 72, ("Platelets", "RBC", "WBC"))
    for number in (0, 100, 291):
        objects = reference[number][1]["annotation"]["object"]
        names = [each["name"] for each in objects]
        assert [data.labels[label - 1] for label in data.train[number].labels] == names
        first = objects[0]["bndbox"]
        corner = [float(first["xmin"]) - 1, float(first["ymin"]) - 1, float(first["xmax"]), float(first["ymax"])]
        assert data.train[number].boxes[0].tolist() == corner
    # Two accidental clicks, which to VOC are boxes of one pixel.
    assert sum((np.diff(p.boxes.reshape(-1, 2, 2), axis=1) <= 1).any() for p in data.train + data.test) == 2


def test_the_labels_are_vocs_where_most_objects_are(tmp_path):
    folder = voc_folder(tmp_path)
    for path in (folder / VOC / "Annotations").iterdir():
        path.write_text(path.read_text().replace("disc", "sheep").replace("square", "bus"))
    assert load_detection_data(f"voc:{folder}").labels == VOC_LABELS


def test_labels_may_be_given(tmp_path):
    folder = voc_folder(tmp_path)
    (folder / VOC / "labels.txt").write_text("square\ndisc\nstar\n")
    assert load_detection_data(f"voc:{folder}").labels == ("square", "disc", "star")


def test_difficult_objects_and_crowds_are_not_trained_on(tmp_path):
    folder = voc_folder(tmp_path / "voc")
    rewrite(folder, 0, difficult=1)
    data = load_detection_data(f"voc:{folder}")
    assert data.train[0].ignored.tolist() == [True, True]
    assert len(DetectionView(data.train, training=True).__getitems__([0])[1][0]["boxes"]) == 0
    assert len(DetectionView(data.train).__getitems__([0])[1][0]["boxes"]) == 2
    folder = coco_folder(tmp_path / "coco")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert load_detection_data(f"coco:{folder}").train[0].ignored.tolist() == [True, False]


def test_flipped_pictures_have_flipped_boxes_by_seed_and_epoch(tmp_path):
    data = load_detection_data(f"voc:{voc_folder(tmp_path)}")
    plain, always = DetectionView(data.train), DetectionView(data.train, flip=1.0)
    (image,), (target,) = plain.__getitems__([0])
    (mirrored,), (turned,) = always.__getitems__([0])
    assert torch.equal(mirrored, image.flip(-1))
    assert turned["boxes"][:, 0].tolist() == (WIDTH - target["boxes"][:, 2]).tolist()
    assert turned["boxes"][:, 2].tolist() == (WIDTH - target["boxes"][:, 0]).tolist()
    half = DetectionView(data.train, flip=0.5, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        half.start_epoch(epoch)
        epochs.append([torch.equal(half.__getitems__([n])[0][0], plain.__getitems__([n])[0][0]) for n in range(8)])
    assert epochs[0] == epochs[2] != epochs[1]


# What is refused


def test_all_bad_annotations_are_named_at_once(tmp_path):
    folder = voc_folder(tmp_path)
    rewrite(folder, 0, [("disc", 50, 10, 40, 20)])
    rewrite(folder, 1, [("disc", 10, 10, 10, 20)])
    rewrite(folder, 2, [("disc", 80, 10, 97, 20), ("square", 10, 10, 30, 30)])
    rewrite(folder, 3, [("star", 10, 10, 30, 30)] + draw(3)[1])
    rewrite(folder, 4, size=(100, 72))
    (folder / VOC / "JPEGImages/000005.jpg").unlink()
    (folder / VOC / "JPEGImages/000006.jpg").write_bytes(b"no picture")
    (folder / VOC / "Annotations/000008.xml").unlink()
    (folder / VOC / "Annotations/000009.xml").write_text("<annotation>")
    rewrite(folder, 10, [("disc", -2, 10, 20, 20)])
    (folder / VOC / "labels.txt").write_text("disc\nsquare\n")
    with pytest.raises(ConfigurationError) as caught:
        load_detection_data(f"voc:{folder}")
    lines = {line.strip().partition(":")[0]: line for line in str(caught.value).splitlines()[1:]}
    told = {
        "000000.xml": "reversed",
        "000001.xml": "empty",
        "000002.xml": "outside",
        "000003.xml": "unknown class 'star'",
        "000004.xml": "100 x 72",
        "000005.xml": "no such file",
        "000006.xml": "is not an image of a known format",
        "000008.xml": "missing",
        "000009.xml": "no annotation",
        "000010.xml": "outside",
    }
    assert lines.keys() == told.keys()
    for file, text in told.items():
        assert text in lines[file]
    assert "skip_bad_annotations" in str(caught.value)
    data = load_detection_data(f"voc:{folder}", skip_bad_annotations=True)
    assert len(data.skipped) == 10
    assert [len(picture.labels) for picture in data.train] == [0, 0, 1, 2, 2]
    assert len(data.test) == 2


def test_bad_annotations_of_coco_are_named_at_once(tmp_path):
    folder = coco_folder(tmp_path)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    first, second, third, fourth, fifth, _ = content["annotations"]
    first["bbox"] = [10, 10, -5, 5]
    second["bbox"] = [10, 10, 0, 5]
    third["category_id"] = 99
    fourth["bbox"] = [90, 10, 20, 5]
    fifth["image_id"] = 1234
    path.write_text(json.dumps(content))
    (folder / "train2017/2.png").unlink()
    with pytest.raises(ConfigurationError) as caught:
        load_detection_data(f"coco:{folder}")
    for text in ("reversed", "empty", "category 99", "outside", "1234", "2.png: no such file"):
        assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 7


@pytest.mark.parametrize(("part", "key"), [("images", "id"), ("images", "file_name"), ("categories", "name")])
def test_what_lacks_a_name_in_coco_is_refused(tmp_path, part, key):
    folder = coco_folder(tmp_path)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    del content[part][0][key]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"lacks '{key}'"):
        load_detection_data(f"coco:{folder}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("voc:", "voc:FOLDER"),
        ("digits", "voc:FOLDER"),
        ("voc:{empty}", "Annotations"),
        ("coco:{empty}", "annotations/instances_train"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path, name, told):
    with pytest.raises(ConfigurationError, match=told):
        load_detection_data(name.format(empty=tmp_path))


def test_coordinates_are_counted_from_1_in_voc(tmp_path):
    folder = voc_folder(tmp_path)
    path = rewrite(folder, 0, [("disc", 0, 0, WIDTH, HEIGHT)])
    box = ET.parse(path).getroot().find("object/bndbox")
    assert [box.findtext(edge) for edge in ("xmin", "ymin", "xmax", "ymax")] == ["1", "1", "96", "72"]
    assert edges(load_detection_data(f"voc:{folder}").train[0]) == [(0, 0, 96, 72)]


def test_a_zero_in_voc_is_the_first_pixel(tmp_path):
    folder = voc_folder(tmp_path)
    path = rewrite(folder, 0, [("disc", 0, 10, 20, 30), ("square", 5, 0, 50, 40)])
    text = path.read_text()
    path.write_text(text.replace("<xmin>1</xmin>", "<xmin>0</xmin>").replace("<ymin>1</ymin>", "<ymin>0</ymin>"))
    assert path.read_text() != text
    assert edges(load_detection_data(f"voc:{folder}").train[0]) == [(0, 10, 20, 30), (5, 0, 50, 40)]


def test_a_box_of_which_nothing_is_left_inside_is_named_before_training(tmp_path):
    folder = coco_folder(tmp_path)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [WIDTH, 10, 0.3, 20]
    content["annotations"][1]["bbox"] = [WIDTH - 5, 10, 5.3, 20]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="1 annotations") as caught:
        load_detection_data(f"coco:{folder}")
    assert "empty in the 96 x 72 pixels" in str(caught.value)
    data = load_detection_data(f"coco:{folder}", skip_bad_annotations=True)
    assert all((picture.boxes[:, 2:] > picture.boxes[:, :2]).all() for picture in data.train)
