"""What annotation tools and people write by the way: read with the right value, or named with a remedy of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from detection_folders import HEIGHT, WIDTH, coco_folder, draw, voc_folder
from PIL import Image

from ccnn_zoo.detection import load_detection_data
from ccnn_zoo.errors import ConfigurationError

VOC = "VOCdevkit/VOC2007"
RAW = re.compile(
    r"(Error\(|not supported between|NoneType|unhashable|could not convert|must be str, not|object is not)"
)
"""Python's own words."""


def edges(picture) -> list[tuple]:
    return [tuple(int(edge) for edge in box) for box in picture.boxes]


def drawn(number: int) -> list[tuple]:
    return [box[1:] for box in draw(number)[1]]


def edited(folder: Path, change, part: str = "train2017") -> str:
    """Let ``change`` edit an annotation file of COCO; return the data's name."""
    path = folder / f"annotations/instances_{part}.json"
    content = json.loads(path.read_text())
    content = change(content) or content
    path.write_text(json.dumps(content))
    return f"coco:{folder}"


def refusal(name: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_detection_data(name)
    text = str(caught.value)
    assert not RAW.search(text), text
    return text


def xml(folder: Path, number: int, *replacements: tuple[str, str]) -> Path:
    path = folder / VOC / "Annotations" / f"{number:06d}.xml"
    text = path.read_text()
    for old, new in replacements:
        assert re.search(old, text)
        text = re.sub(old, new, text)
    path.write_text(text)
    return path


def rename(folder: Path, number: int, stem: str) -> None:
    """Rename annotation and picture, and the line of the list, as a user would; ``<filename>`` stays."""
    place = folder / VOC
    (place / f"Annotations/{number:06d}.xml").rename(place / f"Annotations/{stem}.xml")
    (place / f"JPEGImages/{number:06d}.jpg").rename(place / f"JPEGImages/{stem}.jpg")
    for path in (place / "ImageSets/Main").iterdir():
        path.write_text(path.read_text().replace(f"{number:06d}\n", f"{stem}\n"))


# COCO


def test_images_of_one_id_get_nobodys_boxes(tmp_path):
    folder = coco_folder(tmp_path)
    name = edited(folder, lambda content: content["images"][1].update(id=0))
    text = refusal(name)
    assert "0.png: another image has the id 0 too" in text
    assert "1.png: another image has the id 0 too" in text
    data = load_detection_data(name, skip_bad_annotations=True)
    assert [picture.path.name for picture in data.train] == ["2.png"]
    assert edges(data.train[0]) == drawn(2)


def test_a_picture_that_is_listed_twice_is_named(tmp_path):
    name = edited(coco_folder(tmp_path), lambda content: content["images"][1].update(file_name="0.png"))
    assert refusal(name).count("0.png: is listed twice") == 2


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ([{"id": 7, "name": "disc"}, {"id": 7, "name": "square"}], "two categories have the id 7, 'disc' and 'square'"),
        ([{"id": 7, "name": "disc"}, {"id": 3, "name": "disc"}], "the class 'disc' twice"),
        ([{"id": 7, "name": "disc"}, {"id": "3", "name": "square"}], "ids of categories are partly numbers"),
        ([{"id": 7, "name": "disc"}, {"id": None, "name": "square"}], "category 1 lacks 'id'"),
        ([{"id": 7, "name": "disc"}, {"id": [3], "name": "square"}], r"category 1 id is \[3\]"),
        ([{"id": 7, "name": "disc"}, {"id": 3, "name": 3}], "category 3 lacks 'name'"),
        ([{"id": 7, "name": "disc"}, {"id": 3, "name": "\x1b[2J"}], "without control characters"),
        ([{"id": 7, "name": "disc"}, {"id": 3, "name": " "}], "class called ' '"),
        (["disc", "square"], "categories must be a list of tables"),
        ([], "names no class"),
    ],
)
def test_categories_that_would_merge_or_break_are_refused(tmp_path, categories, told):
    name = edited(coco_folder(tmp_path), lambda content: content.update(categories=categories))
    assert re.search(told, refusal(name))


@pytest.mark.parametrize(
    ("written", "ignored"),
    [("0", False), ("1", True), (0, False), (1, True), (False, False), (True, True), (None, False), ("false", False)],
)
def test_crowds_are_crowds_however_they_are_written(tmp_path, written, ignored):
    name = edited(coco_folder(tmp_path), lambda content: content["annotations"][0].update(iscrowd=written))
    assert load_detection_data(name).train[0].ignored.tolist() == [ignored, False]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"iscrowd": "perhaps"}, "iscrowd is 'perhaps', neither 0 nor 1"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], not four numbers"),
        ({"bbox": None}, "bbox is None, not four numbers"),
        ({"bbox": [1, 2, 3, "wide"]}, "bbox is 'wide', no number"),
        ({"bbox": [1, 2, 3, {}]}, "bbox is {}, no number"),
        ({"bbox": [float("nan"), 2, 3, 4]}, "is no box"),
        ({"area": "large"}, "area is 'large', no number"),
        ({"category_id": None}, "lacks 'category_id'"),
        ({"category_id": [1]}, r"category_id is \[1\]"),
        ({"image_id": {}}, "image_id is {}"),
        ({"image_id": "0"}, "no image has id '0'"),
    ],
)
def test_values_of_no_use_are_named_in_our_words(tmp_path, change, told):
    name = edited(coco_folder(tmp_path), lambda content: content["annotations"][0].update(change))
    assert re.search(told, refusal(name))
    assert edges(load_detection_data(name, skip_bad_annotations=True).train[0]) == drawn(0)[1:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": None}, "image 0: lacks 'id'"),
        ({"id": [0]}, r"image 0: id is \[0\]"),
        ({"file_name": 0}, "image 0: lacks 'file_name'"),
        ({"file_name": "../0.png"}, "'../0.png' lies outside of the folder"),
        ({"file_name": "/etc/0.png"}, "'/etc/0.png' lies outside of the folder"),
        ({"width": "wide"}, "width is 'wide', no number"),
        ({"width": 96.5}, "width is 96.5, no whole number"),
        ({"width": 97}, "says 97 x 72 pixels"),
    ],
)
def test_images_of_no_use_are_named_in_our_words(tmp_path, change, told):
    name = edited(coco_folder(tmp_path), lambda content: content["images"][0].update(change))
    assert re.search(told, refusal(name))
    assert len(load_detection_data(name, skip_bad_annotations=True).train) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0, "height": 0},
        {"width": 96.0, "height": "72.0"},
        {"width": None},
        {"file_name": "train2017/0.png"},
        {"file_name": "train2017\\0.png"},
    ],
)
def test_sizes_and_names_are_read_as_tools_write_them(tmp_path, change):
    name = edited(coco_folder(tmp_path), lambda content: content["images"][0].update(change))
    assert edges(load_detection_data(name).train[0]) == drawn(0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no JSON, line 1, column 1"),
        (b'{"images": [', "no JSON, line 1"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON in UTF-8"),
        (b"[]", "holds no table"),
        (b'{"images": {}, "annotations": [], "categories": []}', "images must be a list of tables"),
        (b'{"images": [], "annotations": [1], "categories": []}', "annotations must be a list of tables"),
    ],
)
def test_what_is_no_annotation_file_is_refused_in_our_words(tmp_path, content, told):
    folder = coco_folder(tmp_path)
    (folder / "annotations/instances_train2017.json").write_bytes(content)
    text = refusal(f"coco:{folder}")
    assert told in text
    assert "Expected annotations" in text


# VOC


def test_boxes_stay_with_the_picture_of_their_own_name(tmp_path):
    folder = voc_folder(tmp_path)
    # Number 0 goes; 1 becomes 0, 2 becomes 1: every <filename> now is the name of another picture.
    for suffix, place in ((".xml", "Annotations"), (".jpg", "JPEGImages")):
        for old, new in ((1, 0), (2, 1)):
            (folder / VOC / place / f"{old:06d}{suffix}").replace(folder / VOC / place / f"{new:06d}{suffix}")
    lists = folder / VOC / "ImageSets/Main/trainval.txt"
    lists.write_text(lists.read_text().replace("000002\n", ""))
    data = load_detection_data(f"voc:{folder}")
    for picture, number in zip(data.train[:2], (1, 2), strict=True):
        assert edges(picture) == drawn(number)
        with Image.open(picture.path) as image, Image.open(folder / VOC / f"JPEGImages/{picture.path.name}") as own:
            assert image.tobytes() == own.tobytes()
    assert [picture.path.name for picture in data.train[:2]] == ["000000.jpg", "000001.jpg"]
    assert "2 annotations have another name in <filename>" in data.notes[0]
    assert "000000.xml, which says '000001.jpg'" in data.notes[0]


def test_a_stale_filename_does_not_move_boxes_to_another_picture(tmp_path):
    folder = voc_folder(tmp_path)
    xml(folder, 0, ("000000.jpg", "000001.jpg"))
    (folder / VOC / "JPEGImages/000000.jpg").unlink()
    assert "000000.xml: its picture 000000.* is missing; <filename> says '000001.jpg', which is the picture of" in (
        refusal(f"voc:{folder}")
    )


def test_filename_finds_the_picture_where_none_has_the_annotations_name(tmp_path):
    folder = voc_folder(tmp_path)
    (folder / VOC / "JPEGImages/000000.jpg").rename(folder / VOC / "JPEGImages/IMG 7.jpg")
    xml(folder, 0, ("000000.jpg", r"C:\\\\scans\\\\IMG 7.jpg"))
    data = load_detection_data(f"voc:{folder}")
    assert (data.train[0].path.name, edges(data.train[0])) == ("IMG 7.jpg", drawn(0))
    xml(folder, 1, ("000001.jpg", "IMG 7.jpg"))
    (folder / VOC / "JPEGImages/000001.jpg").unlink()
    assert "000001.xml: its picture IMG 7.jpg is that of 000000.xml too" in refusal(f"voc:{folder}")


@pytest.mark.parametrize("tag", ["<name>[a-z]+</name>", "(?<=<name>)[a-z]+(?=</name>)"])
def test_an_object_without_a_name_makes_no_class(tmp_path, tag):
    folder = voc_folder(tmp_path)
    path = folder / VOC / "Annotations/000000.xml"
    path.write_text(re.sub(tag, "", path.read_text(), count=1))
    assert "000000.xml: object 0: <name> is missing or empty" in refusal(f"voc:{folder}")
    data = load_detection_data(f"voc:{folder}", skip_bad_annotations=True)
    assert data.labels == ("disc", "square")
    assert edges(data.train[0]) == drawn(0)[1:]


@pytest.mark.parametrize("stem", ["cat on mat", "scan.v2", "Größe 1", "class 1"])
def test_names_in_lists_are_whole_lines(tmp_path, stem):
    folder = voc_folder(tmp_path)
    rename(folder, 0, stem)
    data = load_detection_data(f"voc:{folder}")
    assert (data.train[0].path.stem, edges(data.train[0])) == (stem, drawn(0))


@pytest.mark.parametrize("line", ["000000  1", "000000 -1", "000000.jpg", "  000000\t"])
def test_flags_and_suffixes_in_lists_are_no_part_of_the_name(tmp_path, line):
    folder = voc_folder(tmp_path)
    lists = folder / VOC / "ImageSets/Main/trainval.txt"
    lists.write_text(lists.read_text().replace("000000\n", f"{line}\n"))
    assert edges(load_detection_data(f"voc:{folder}").train[0]) == drawn(0)


def test_byte_order_marks_are_no_part_of_a_text(tmp_path):
    folder = voc_folder(tmp_path / "voc")
    (folder / VOC / "labels.txt").write_text("disc\nsquare\n", encoding="utf-8-sig")
    for path in (*(folder / VOC / "ImageSets/Main").iterdir(), *(folder / VOC / "Annotations").iterdir()):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    data = load_detection_data(f"voc:{folder}")
    assert data.labels == ("disc", "square")
    assert [edges(picture) for picture in data.train] == [drawn(number) for number in range(8)]
    folder = coco_folder(tmp_path / "coco")
    for path in (folder / "annotations").iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert edges(load_detection_data(f"coco:{folder}").train[0]) == drawn(0)


def test_a_list_in_another_encoding_is_named(tmp_path):
    folder = voc_folder(tmp_path)
    (folder / VOC / "labels.txt").write_bytes("Größe\n".encode("latin-1"))
    assert "labels.txt is no text in UTF-8" in refusal(f"voc:{folder}")


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".PNG", ".webp"])
@pytest.mark.parametrize("told", [True, False])
def test_pictures_may_have_any_suffix(tmp_path, suffix, told):
    folder = voc_folder(tmp_path)
    old = folder / VOC / "JPEGImages/000000.jpg"
    with Image.open(old) as image:
        image.save(old.with_suffix(suffix))
    old.unlink()
    if told:
        xml(folder, 0, ("000000.jpg", f"000000{suffix}"))
    data = load_detection_data(f"voc:{folder}")
    assert (data.train[0].path.name, edges(data.train[0])) == (f"000000{suffix}", drawn(0))
    (folder / VOC / "JPEGImages/._000000.jpg").write_bytes(b"of a Macintosh")
    assert load_detection_data(f"voc:{folder}").train[0].path.name == f"000000{suffix}"


def test_of_two_pictures_of_one_name_the_annotation_says_which(tmp_path):
    folder = voc_folder(tmp_path)
    place = folder / VOC / "JPEGImages"
    with Image.open(place / "000000.jpg") as image:
        image.save(place / "000000.png")
    assert load_detection_data(f"voc:{folder}").train[0].path.name == "000000.jpg"
    xml(folder, 0, ("000000.jpg", "other.jpg"))
    assert "000000.jpg and 000000.png may both be its picture" in refusal(f"voc:{folder}")


@pytest.mark.parametrize("size", [("0", "0"), ("96.0", "72.0"), (" 96 ", "72"), None])
def test_sizes_are_read_as_tools_write_them(tmp_path, size):
    folder = voc_folder(tmp_path)
    new = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    xml(folder, 0, ("<size>.*</size>", new))
    picture = load_detection_data(f"voc:{folder}").train[0]
    assert (picture.width, picture.height, edges(picture)) == (WIDTH, HEIGHT, drawn(0))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<width>96</width>", "<width>wide</width>", "width is 'wide', no number"),
        ("<width>96</width>", "<width>96.5</width>", "width is 96.5, no whole number"),
        ("<xmin>[0-9]+</xmin>", "", "object 0: xmin is missing"),
        ("<xmin>[0-9]+</xmin>", "<xmin>left</xmin>", "object 0: xmin is 'left', no number"),
        ("<bndbox>.*?</bndbox>", "", "object 0: xmin is missing"),
        ("<difficult>0</difficult>", "<difficult>very</difficult>", "difficult is 'very', neither 0 nor 1"),
        ("annotation>", "html>", "begins with <html>"),
        ("</annotation>", "", "no XML, line 1"),
        ("^", "<?xml version='1.0' encoding='klingon'?>", "000000.xml: no annotation of VOC"),
    ],
)
def test_annotations_of_no_use_are_named_in_our_words(tmp_path, old, new, told):
    folder = voc_folder(tmp_path)
    xml(folder, 0, (old, new))
    text = refusal(f"voc:{folder}")
    assert told in text
    assert "000000.xml" in text


@pytest.mark.parametrize(("written", "ignored"), [("Unspecified", False), ("", False), ("1", True), ("true", True)])
def test_difficult_objects_are_difficult_however_it_is_written(tmp_path, written, ignored):
    folder = voc_folder(tmp_path)
    xml(folder, 0, ("<difficult>0</difficult>", f"<difficult>{written}</difficult>"))
    assert load_detection_data(f"voc:{folder}").train[0].ignored.tolist() == [ignored, ignored]


def test_a_class_that_labels_txt_names_twice_is_refused(tmp_path):
    folder = voc_folder(tmp_path)
    (folder / VOC / "labels.txt").write_text("disc\nsquare\ndisc\n")
    assert "labels.txt names the class 'disc' twice" in refusal(f"voc:{folder}")


def test_lists_lead_nowhere_else(tmp_path):
    folder = voc_folder(tmp_path)
    lists = folder / VOC / "ImageSets/Main/trainval.txt"
    lists.write_text(lists.read_text() + "../../secret\n")
    assert "'../../secret' lies outside of the folder" in refusal(f"voc:{folder}")


def test_pictures_that_are_trained_on_and_tested_on_are_told(tmp_path):
    folder = voc_folder(tmp_path)
    lists = folder / VOC / "ImageSets/Main/test.txt"
    lists.write_text(lists.read_text() + "000003\n000003\n")
    notes = load_detection_data(f"voc:{folder}").notes
    assert notes == (
        "test.txt lists 1 names more than once, the first is '000003'",
        "1 pictures are trained on and tested on, the first is 000003.jpg",
    )
