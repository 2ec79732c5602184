"""Small folders of pictures with boxes, in VOC's and in COCO's layout: dark squares and light discs on grey."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 96, 72
Box = tuple[str, int, int, int, int]  # name, x1, y1, x2, y2 in pixels from 0, far edges


def draw(seed: int) -> tuple[Image.Image, list[Box]]:
    """Return a picture of two shapes side by side, and their boxes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(110, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    pen, boxes = ImageDraw.Draw(image), []
    for column, name in enumerate(rng.permutation(["disc", "square"])):
        side = int(rng.integers(24, 40))
        left, top = column * 48 + int(rng.integers(0, 48 - side)), int(rng.integers(0, HEIGHT - side))
        corners = (left, top, left + side - 1, top + side - 1)  # Pillow draws the last pixel too
        pen.ellipse(corners, fill=(240, 240, 200)) if name == "disc" else pen.rectangle(corners, fill=(30, 20, 60))
        boxes.append((str(name), left, top, left + side, top + side))
    return image, boxes


def voc_folder(root: Path, train: int = 8, test: int = 4) -> Path:
    """Write ``VOCdevkit/VOC2007`` below ``root``; return ``root``."""
    place = root / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (place / name).mkdir(parents=True)
    for part, numbers in (("trainval", range(train)), ("test", range(train, train + test))):
        (place / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{number:06d}\n" for number in numbers))
        for number in numbers:
            image, boxes = draw(number)
            image.save(place / "JPEGImages" / f"{number:06d}.jpg", quality=95)
            (place / "Annotations" / f"{number:06d}.xml").write_text(annotation(f"{number:06d}.jpg", boxes))
    return root


def annotation(filename: str, boxes: list[Box], size: tuple[int, int] = (WIDTH, HEIGHT), difficult: int = 0) -> str:
    """Return an annotation file of VOC, which counts pixels from 1 and includes the last one."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in boxes
    )
    width, height = size
    return (
        f"<annotation><filename>{filename}</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def coco_folder(root: Path, train: int = 3, test: int = 2) -> Path:
    """Write ``annotations``, ``train2017`` and ``val2017`` into ``root`` and return it; category ids are 7 and 3."""
    (root / "annotations").mkdir(parents=True)
    ids = {"disc": 7, "square": 3}
    for part, numbers in (("train2017", range(train)), ("val2017", range(train, train + test))):
        (root / part).mkdir()
        content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
        for number in numbers:
            image, boxes = draw(number)
            image.save(root / part / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
            for name, x1, y1, x2, y2 in boxes:
                found = {"image_id": number, "category_id": ids[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
                found |= {"id": len(content["annotations"]) + 1, "iscrowd": 0, "area": (x2 - x1) * (y2 - y1)}
                content["annotations"].append(found)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root
