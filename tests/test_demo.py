"""The main job, shortened to one epoch: what it leaves, and what a second run does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccnn_zoo import demo
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe

RECIPE = replace(Recipe.load("digits"), epochs=1, branches=2, warmup=0, validation=0.2)


def run(folder: Path) -> tuple[demo.DemoReport, str]:
    lines: list[str] = []
    report = demo.run(folder, recipe=RECIPE, device="cpu", say=lines.append, progress=False)
    return report, "\n".join(lines)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, demo.DemoReport, str]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, *run(folder)


def test_the_report_says_what_was_measured(first):
    folder, report, said = first
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(asdict(report)))
    first, second = report.plain
    assert (first.branches, second.branches, report.ensemble.branches, report.calibrated.branches) == (1, 1, 2, 2)
    assert first.test_loss != second.test_loss  # other first weights
    assert report.images == 360
    assert report.same_class_as_torch == 360
    assert report.onnx_error_percent == pytest.approx(report.ensemble.test_error_percent)
    assert report.provider == "CPUExecutionProvider"
    assert report.provider in said
    assert first.seconds > 0
    assert report.ensemble.seconds == first.seconds + second.seconds
    assert report.ensemble.trained_parameters == 2 * first.trained_parameters
    assert report.ensemble.deployed_parameters == 2 * first.deployed_parameters
    # 20 convolutions share w; a second branch adds one value of R a position, in 17 kernels of 3x3 and 3 of 1x1.
    assert report.calibrated.trained_parameters - first.trained_parameters == 17 * 9 + 3 + _batch_norm_weights()


def test_what_the_file_knows_of_its_answers_is_counted(first):
    """0.95 is promised; with 288 digits to fit on, fewer than 0.88 of 360 would be chance once in 10,000 runs."""
    _, report, said = first
    doubt = report.doubt
    assert doubt.fitted_on == 288
    assert 0.88 * 360 <= doubt.covered <= 360
    assert 1 <= doubt.mean_set_size <= 10
    assert 0 <= doubt.wrong <= doubt.decided <= 360
    assert doubt.decided == 0 or doubt.wrong / doubt.decided < 0.06
    assert doubt.digits_told < 0.16  # at most 0.1 for two scores, and chance
    assert f"{doubt.covered} of 360 hold the right class" in said


def _batch_norm_weights() -> int:
    """A second weight and bias for every channel of the thin ResNet-18."""
    return 2 * (16 + 4 * 16 + 5 * 16 + 5 * 32 + 5 * 64)


def test_the_picture_is_drawn(first):
    folder, report, _ = first
    assert Path(report.picture) == folder / "demo.png"
    pixels = np.asarray(Image.open(report.picture).convert("RGB"))
    assert pixels.shape[0] > 700
    assert pixels.shape[1] > 1000
    for part in (pixels[:450, :600], pixels[:450, 700:], pixels[500:, 100:]):
        assert part.std() > 10  # curves, digits, heat maps


def test_a_second_run_trains_and_exports_nothing_anew(first):
    folder, report, _ = first
    files = [folder / name / "last.safetensors" for name in ("plain-0", "plain-1", "ensemble", "calibrated")]
    files.append(Path(report.repository) / "onnx" / "model.onnx")
    before = [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    again, said = run(folder)
    assert [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files] == before
    assert said.count("trained before") == 3
    assert again == replace(
        report,
        plain=tuple(replace(each, seconds=0.0) for each in report.plain),
        ensemble=replace(report.ensemble, seconds=0.0),
        calibrated=replace(report.calibrated, seconds=0.0),
    )


def test_a_damaged_cache_is_made_anew(first):
    folder, report, _ = first
    checkpoint = folder / "calibrated" / "last.safetensors"
    data = bytearray(checkpoint.read_bytes())
    data[-5] ^= 1
    checkpoint.write_bytes(data)
    again, said = run(folder)
    assert said.count("trained before") == 2
    assert again.calibrated.test_error_percent == report.calibrated.test_error_percent


def test_an_unknown_device_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="tpu"):
        demo.run(tmp_path / "demo", device="tpu")
    assert not (tmp_path / "demo").exists()


def test_a_recipe_that_holds_nothing_out_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match=r"validation=0\.0.*hold some out"):
        demo.run(tmp_path / "demo", recipe=replace(RECIPE, validation=0.0))
    assert not (tmp_path / "demo").exists()
