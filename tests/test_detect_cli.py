"""Contract of `ccnn detect`, of exporting detectors on the command line and of publishing them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_network import LABELS, RECORD, published_detector, save_picture
from forks import python
from PIL import Image
from typer.testing import CliRunner

from ccnn_zoo import hub, runtime
from ccnn_zoo.cli import app
from ccnn_zoo.detection import load_detector
from ccnn_zoo.errors import ConfigurationError, ImageError, IntegrityError, MetadataError

# A finder that finds none of these: what is imported all the same ends the command.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "onnx", "onnxscript", "accelerate", "sklearn"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from ccnn_zoo.cli import main
sys.argv = ["ccnn", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def trained() -> Path:
    """A training folder of a detector, as `ccnn train` leaves it."""
    return published_detector()[0]


@pytest.fixture(scope="module")
def repository() -> Path:
    """The detector, published to a folder on the command line."""
    return published_detector()[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for name, size in (("a.png", (120, 160)), ("b.jpg", (90, 200)), ("more/a.png", (64, 48))):
        save_picture(folder / name, *size)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def run_detect(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, "detect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def in_torch(trained: Path, path: Path) -> dict[str, np.ndarray]:
    detector, _ = load_detector(trained / "last.safetensors")
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    with torch.no_grad():
        found = detector([torch.from_numpy(pixels).permute(2, 0, 1).contiguous()])[0]
    return {name: tensor.numpy() for name, tensor in found.items()}


def test_detect_draws_and_writes_what_torch_finds_without_torch(trained, repository, pictures, tmp_path):
    run = run_detect(pictures, "--model", repository, "--score", 0.7, "--output", tmp_path / "found", "--device", "cpu")
    assert run.returncode == 1, run.stderr
    assert "broken.png is not an image" in run.stderr
    records = [json.loads(line) for line in (tmp_path / "found/detections.jsonl").read_text().splitlines()]
    assert [Path(record["source"]).name for record in records] == ["a.png", "b.jpg", "broken.png", "a.png"]
    assert [record.get("picture") for record in records] == ["a.png", "b.png", None, "more/a.png"]
    assert records[2]["error"]
    assert not records[2]["objects"]
    written = {path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("*.*")}
    assert written == {"a.png", "b.png", "more/a.png", "detections.jsonl"}
    for record in (records[0], records[1], records[3]):
        theirs = in_torch(trained, Path(record["source"]))
        sure = theirs["scores"] >= 0.7
        assert 5 < len(record["objects"]) == sure.sum() < len(sure)
        assert sorted(o["label"] for o in record["objects"]) == sorted(LABELS[i - 1] for i in theirs["labels"][sure])
        np.testing.assert_allclose([o["score"] for o in record["objects"]], theirs["scores"][sure], atol=1e-3)
        corners = np.float32([each["box"] for each in record["objects"]])
        nearest = np.abs(corners[:, None] - theirs["boxes"][sure]).max(-1).min(1)
        assert nearest.max() <= 0.5
        before, after = Image.open(record["source"]), Image.open(tmp_path / "found" / record["picture"])
        assert after.size == before.size == (record["width"], record["height"])
        assert np.asarray(before.convert("RGB")).tobytes() != np.asarray(after).tobytes()


def test_detect_prints_lines_or_json(repository, pictures):
    lines = run_detect(pictures / "a.png", "--model", repository, "--device", "cpu")
    assert lines.returncode == 0, lines.stderr
    assert "the 2 branches of ccnn_alexnet meet in its features, before boxes are found" in lines.stderr
    head, *objects = lines.stdout.splitlines()
    assert re.fullmatch(rf".*a\.png: {len(objects)} objects", head)
    assert all(re.fullmatch(r"  (red|green|blue) \d+\.\d%  [\d., ]+", line) for line in objects)
    record = json.loads(run_detect(pictures / "a.png", "--model", repository, "--device", "cpu", "--json").stdout)
    assert len(record["objects"]) == len(objects)
    nothing = run_detect(pictures / "a.png", "--model", repository, "--device", "cpu", "--score", 1)
    assert nothing.stdout.strip().endswith("a.png: 0 objects")


def test_boxes_are_drawn_where_they_are(pictures):
    blank = Image.new("RGB", (100, 80), "white")
    found = runtime.FoundObject("red", 0.9, (20.0, 30.0, 70.0, 60.0))
    drawn = np.asarray(runtime.draw(blank, runtime.Detection("image 0", 100, 80, (found,)), ("red",)))
    coloured = (drawn != 255).any(-1)
    assert coloured[30, 20:70].all()
    assert coloured[60, 20:70].all()
    assert coloured[30:60, 20].all()
    assert coloured[30:60, 70].all()
    assert not coloured[35:58, 23:68].any(), "the inside of a box stays as it is"
    assert not coloured[62:].any()
    assert np.asarray(blank).min() == 255, "the caller's picture is left as it was"


def test_output_among_the_pictures_is_refused(repository, pictures):
    before = sorted(pictures.rglob("*"))
    for output in (pictures, pictures / "found", pictures / "a.png"):
        result = CliRunner().invoke(app, ["detect", str(pictures), "--model", str(repository), "-o", str(output)])
        assert isinstance(result.exception, ConfigurationError)
    assert sorted(pictures.rglob("*")) == before


def test_detectors_and_classifiers_are_told_apart(repository, trained, tmp_path):
    with pytest.raises(MetadataError, match="load_detector"):
        runtime.load(repository, device="cpu")
    classifier = Path(runtime.__file__).with_name("probe.onnx")
    with pytest.raises(MetadataError, match="no metadata of a detector"):
        runtime.load_detector(classifier, device="cpu")
    result = CliRunner().invoke(app, ["export", str(trained), "-o", str(tmp_path / "x.onnx"), "-p", "int8"])
    assert isinstance(result.exception, ConfigurationError)
    assert "fp32" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_wrong_inputs_are_named(repository):
    detector = runtime.load_detector(repository, device="cpu")
    with pytest.raises(ConfigurationError, match="score must be"):
        detector.detect([], score=1.5)
    with pytest.raises(ImageError, match="image 0 is a float"):
        detector.detect(3.5)
    for wrong in (np.zeros((1, 3, 8, 8)), np.zeros((2, 3, 8, 8), np.float32), np.full((1, 3, 8, 8), 255, np.float32)):
        with pytest.raises(ConfigurationError, match="predict takes"):
            detector.predict(wrong)


def test_export_on_the_command_line_says_what_it_compared(trained, repository, tmp_path):
    # Publishing made the same export; this one reads the published folder.
    result = CliRunner().invoke(
        app, ["export", f"local:{repository}", "-o", str(tmp_path / "d.onnx"), "--report", str(tmp_path / "d.json")]
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"compared with torch: \d+ objects on 3 pictures of 3 sizes, boxes within", result.output)
    assert json.loads((tmp_path / "d.json").read_text())["detections"] > 20
    assert (tmp_path / "d.onnx").read_bytes() == (repository / "onnx/model.onnx").read_bytes()


def test_a_published_detector_is_whole_and_comes_back(trained, repository, tmp_path):
    folder = hub.download(f"local:{shutil.copytree(repository, tmp_path / 'copy')}")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["task"] == "object-detection"
    assert manifest["labels"] == LABELS
    assert manifest["record"]["metrics"] == RECORD.metrics
    assert manifest["export"]["max_box_difference"] <= 0.5
    loaded, record = load_detector(folder / "model.safetensors")
    original, _ = load_detector(trained / "last.safetensors")
    assert record == RECORD
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in original.state_dict().items())
    (folder / "onnx/model.onnx").write_bytes(b"x" + (folder / "onnx/model.onnx").read_bytes()[1:])
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx"):
        runtime.load_detector(folder, device="cpu")


def test_the_card_says_object_detection_and_its_snippets_run(repository):
    card = (repository / "README.md").read_text()
    header = card.split("---")[1]
    assert "pipeline_tag: object-detection" in header
    assert "test_map_percent" in header
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        run = python(snippet, folder=repository)
        assert run.returncode == 0, run.stderr
    assert "12.5" in card
