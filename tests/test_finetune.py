"""Fine-tuning as docs/finetune.md has it: from a plain trained network to a calibrated one that is deployed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ccnn_zoo import calibrate, hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, evaluation_batches, load_data, train

ROOT = Path(__file__).resolve().parents[1]
THIN = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 32]}
PLAIN = Recipe(
    model="resnet18", branches=1, model_kwargs=THIN, data="digits", epochs=3, batch_size=64, lr=0.05, noise_std=0.0
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The folder of a plain network of timm's, trained on digits."""
    folder = tmp_path_factory.mktemp("plain")
    result = train(PLAIN, folder, progress=False, pictures=False)
    assert result.record.metrics["test_error_percent"] < 50, "it must have learnt something"
    return folder


@pytest.fixture(scope="module")
def as_pictures(tmp_path_factory) -> Callable[[str, Callable[[int], str]], str]:
    """Writes digits as a folder of pictures, each in the folder of the class that a function gives it."""

    def write(name: str, label: Callable[[int], str]) -> str:
        folder, digits = tmp_path_factory.mktemp(name), load_digits()
        for number, (pixels, target) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
            place = folder / ("train" if number < 400 else "test") / label(target)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15.9375).astype("uint8")).save(place / f"{number}.png")
        return f"folder:{folder}"

    return write


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "finetune.md").read_text(), re.M | re.S)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "torch.Size([2, 3, 10])" in run.stdout
    assert float(re.search(r"wrong on (\d+\.\d)%", run.stdout)[1]) < 30
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^(.*ccnn_zoo\.calibrate\(.*)$", code, re.M)[1] in readme, "it goes on from README's lines"


@torch.no_grad()
def test_the_error_at_the_start_is_that_of_the_plain_network(plain):
    network, record = load_checkpoint(plain / "last.safetensors")
    model = calibrate(network, branches=4).eval()
    wrong = total = 0
    for images, classes in evaluation_batches(load_data("digits")):
        torch.testing.assert_close(model(images), network(images), rtol=1e-4, atol=1e-4)
        wrong, total = wrong + int((model(images).argmax(1) != classes).sum()), total + len(classes)
    assert 100 * wrong / total == pytest.approx(record.metrics["test_error_percent"], abs=1e-6)


def test_new_classes_are_learnt_from_the_plain_network_and_deployed(as_pictures, tmp_path):
    parity = as_pictures("parity", lambda target: "odd" if target % 2 else "even")
    plain = replace(PLAIN, data=as_pictures("digits", str), image_size=8)
    train(plain, tmp_path / "plain", progress=False, pictures=False)
    recipe = replace(
        plain,
        branches=2,
        data=parity,
        epochs=4,
        start_from=str(tmp_path / "plain"),
        noise_std=1e-4,
        calibration_lr=0.1,
    )
    result = train(recipe, tmp_path / "run", progress=False, pictures=False)
    assert result.record.metrics["test_error_percent"] < 30
    assert (result.model.branches, result.model.num_classes) == (2, 2)
    repository = f"local:{tmp_path}/hub/parity"
    hub.publish(result.checkpoint, repository)
    classifier = runtime.load(repository, device="cpu")
    pictures = sorted(Path(parity.partition(":")[2]).glob("test/*/*.png"))
    found = classifier.classify(pictures)
    wrong = sum(each.label != path.parent.name for each, path in zip(found, pictures, strict=True))
    assert 100 * wrong / len(pictures) == pytest.approx(result.record.metrics["test_error_percent"], abs=1.5)


def test_training_starts_from_the_plain_weights_near_their_function(plain, tmp_path):
    recipe = replace(PLAIN, branches=2, start_from=str(plain), lr=0.0, calibration_lr=0.0, epochs=1)
    result = train(recipe, tmp_path, progress=False, pictures=False)
    network, _ = load_checkpoint(plain / "last.safetensors")
    torch.testing.assert_close(result.model.layer1[0].conv1.weight, 2 * network.layer1[0].conv1.weight)
    spread = result.model.layer1[0].conv1.calibration.std(0)
    assert 0 < spread.max() < 0.1, "R of diversity 0.1"


def test_training_starts_from_trained_weights_by_their_timm_name(tmp_path):
    shipped = timm.create_model("ccnn_resnet18_cifar.mnist", pretrained=True)
    recipe = replace(
        PLAIN, model="ccnn_resnet18_cifar", branches=shipped.branches, model_kwargs={}, lr=0.0, calibration_lr=0.0,
        epochs=1, start_from="ccnn_resnet18_cifar.mnist",
    )  # fmt: skip
    result = train(recipe, tmp_path, progress=False, pictures=False)
    torch.testing.assert_close(result.model.conv1.weight, shipped.conv1.weight)
    torch.testing.assert_close(result.model.layer4[0].conv1.calibration, shipped.layer4[0].conv1.calibration)
    with pytest.raises(ConfigurationError, match=r"resnet18\.no_tag is no file, and timm cannot get"):
        train(replace(PLAIN, start_from="resnet18.no_tag"), tmp_path, progress=False, pictures=False)
