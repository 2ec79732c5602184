"""Folders as annotation tools export them are read, and documented as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from detection_folders import coco_folder, draw, voc_folder

from ccnn_zoo.detection import layout_table, load_detection_data
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import format_table

NAMES = {"train2017": "train", "val2017": "valid"}


def boxes_of(pictures) -> dict[str, list[tuple]]:
    """Corners by the number that is the picture's name."""
    return {picture.path.stem: [tuple(map(int, box)) for box in picture.boxes] for picture in pictures}


def drawn(numbers) -> dict[str, list[tuple]]:
    return {str(number): [box[1:] for box in draw(number)[1]] for number in numbers}


def roboflow(root: Path) -> Path:
    """Pictures beside their annotations, and a category that only heads the others."""
    coco_folder(root)
    for part, name in NAMES.items():
        content = json.loads((root / f"annotations/instances_{part}.json").read_text())
        content["categories"] = [{"id": 0, "name": "shapes", "supercategory": "none"}] + [
            {**each, "supercategory": "shapes"} for each in content["categories"]
        ]
        (root / part).rename(root / name)
        (root / name / "_annotations.coco.json").write_text(json.dumps(content))
    shutil.rmtree(root / "annotations")
    return root


def cvat_parts(root: Path) -> Path:
    """One export of CVAT for each part."""
    coco_folder(root)
    for part, name in (("train2017", "train"), ("val2017", "val")):
        (root / name / "annotations").mkdir(parents=True)
        (root / part).rename(root / name / "images")
        (root / f"annotations/instances_{part}.json").rename(root / name / "annotations/instances_default.json")
    (root / "annotations").rmdir()
    return root


def cvat_subsets(root: Path) -> Path:
    """One export of CVAT with subsets, whose names are the user's."""
    coco_folder(root)
    (root / "images").mkdir()
    for part, name in (("train2017", "Train"), ("val2017", "Validation")):
        (root / part).rename(root / "images" / name)
        (root / f"annotations/instances_{part}.json").rename(root / f"annotations/instances_{name}.json")
    return root


def voc_with_three_lists(root: Path) -> Path:
    voc_folder(root, 3, 2)
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    (lists / "trainval.txt").rename(lists / "train.txt")
    shutil.copy(lists / "train.txt", lists / "val.txt")
    return root


@pytest.mark.parametrize("make", [coco_folder, roboflow, cvat_parts, cvat_subsets])
def test_layouts_of_coco_hold_the_same_boxes(tmp_path, make: Callable[[Path], Path]):
    data = load_detection_data(f"coco:{make(tmp_path / 'shapes')}")
    assert boxes_of(data.train) == drawn(range(3))
    assert boxes_of(data.test) == drawn(range(3, 5))
    assert data.labels == ("square", "disc")
    assert data.notes == ()


def test_a_test_part_comes_before_a_validation_part(tmp_path):
    folder = roboflow(tmp_path / "shapes")
    (folder / "test").mkdir()
    for path in (folder / "train").iterdir():
        shutil.copy(path, folder / "test")
    data = load_detection_data(f"coco:{folder}")
    assert boxes_of(data.test) == drawn(range(3))
    assert len(load_detection_data(f"voc:{voc_with_three_lists(tmp_path / 'voc')}").test) == 2


def test_an_export_without_parts_is_split_by_its_names_alone(tmp_path):
    folder = coco_folder(tmp_path / "shapes", train=10, test=1)
    (folder / "annotations/instances_train2017.json").rename(folder / "annotations/instances_default.json")
    (folder / "annotations/instances_val2017.json").unlink()
    (folder / "train2017").rename(folder / "images")
    data = load_detection_data(f"coco:{folder}")
    assert (len(data.train), len(data.test)) == (8, 2)
    assert boxes_of(data.train) | boxes_of(data.test) == drawn(range(10))
    assert "2 of 10" in data.notes[0]
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert boxes_of(load_detection_data(f"coco:{moved}").test) == boxes_of(data.test)


def test_an_export_of_cvat_in_vocs_layout_is_split_likewise(tmp_path):
    folder = voc_folder(tmp_path / "voc", train=10, test=1)
    lists = folder / "VOCdevkit/VOC2007/ImageSets/Main"
    (lists / "trainval.txt").rename(lists / "default.txt")
    (lists / "test.txt").unlink()
    data = load_detection_data(f"voc:{folder}")
    assert (len(data.train), len(data.test)) == (8, 2)
    assert "2 of 10" in data.notes[0]


def test_two_files_of_one_part_are_refused_instead_of_one_taken(tmp_path):
    folder = coco_folder(tmp_path)
    shutil.copy(folder / "annotations/instances_train2017.json", folder / "annotations/instances_train2014.json")
    with pytest.raises(ConfigurationError, match=r"2 files of one part: instances_train2014.json, instances_train2017"):
        load_detection_data(f"coco:{folder}")


def test_a_category_that_heads_others_stays_if_something_is_of_it(tmp_path):
    folder = roboflow(tmp_path / "shapes")
    path = folder / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    assert load_detection_data(f"coco:{folder}").labels == ("shapes", "square", "disc")


def test_a_class_that_is_its_own_head_is_one_class(tmp_path):
    folder = roboflow(tmp_path / "shapes")
    for path in folder.glob("*/_annotations.coco.json"):
        text = path.read_text().replace('"name": "shapes"', '"name": "disc"')
        path.write_text(text.replace('"supercategory": "shapes"', '"supercategory": "disc"'))
    assert load_detection_data(f"coco:{folder}").labels == ("square", "disc")


@pytest.mark.parametrize("name", ["classify", "training", "detection"])
def test_the_documents_list_the_formats_and_layouts_of_the_code(name):
    text = (Path(__file__).resolve().parents[1] / "docs" / f"{name}.md").read_text(encoding="utf-8")
    listed = text.partition("<!-- layouts:begin -->\n")[2].partition("<!-- layouts:end -->")[0]
    assert listed.splitlines() == [*format_table(), "", *layout_table()]
