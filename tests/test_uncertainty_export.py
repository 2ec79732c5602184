"""Numbers of confidence where files are made: each precision gets its own, of pictures that nothing else has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from forks import ccnn
from scipy.special import softmax

from ccnn_zoo import export, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.cli._sources import export_images
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, evaluation_batches, load_data, train
from ccnn_zoo.uncertainty import fit

OUTPUTS = ["logits", "branch_logits", "probabilities", "branch_probabilities", "uncertainty", "ood_score"]
RECIPE = Recipe.from_mapping(
    {
        **Recipe.load("digits").to_dict(),
        "branches": 2,
        "epochs": None,
        "iterations": 60,
        "validation": 0.2,
        "model_kwargs": {"layers": (1, 1, 1, 1)},
    },
    "test",
)
HELD = 288  # a fifth of 1,437


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A training folder of a small network for digits, which held out a fifth."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(RECIPE, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def held() -> tuple[torch.Tensor, torch.Tensor]:
    data, held = load_data("digits").hold_out(0.2, RECIPE.seed)
    images, classes = zip(*evaluation_batches(type(data)(**{**vars(data), "test": held})), strict=True)
    return torch.cat(images), torch.cat(classes)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    found = ccnn("export", run, "-o", folder, "-p", "fp32", "-p", "fp16", "-p", "int8", "--uncertainty")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(f"{HELD} images; temperature") == 3
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_carries_what_its_own_logits_of_the_held_out_pictures_say(exported, held, precision):
    images, classes = held
    classifier = runtime.load(exported / export.FILES[precision], device="cpu")
    found, wanted = classifier.metadata.confidence, fit(*_fitted_on(classifier, images, classes))
    assert found.pictures == HELD
    assert found.temperature == pytest.approx(wanted.temperature, rel=1e-4)
    for kind, thresholds in wanted.sets.items():
        assert found.sets[kind] == pytest.approx(thresholds, abs=1e-4)
    assert found.quantiles.keys() == wanted.quantiles.keys()
    np.testing.assert_allclose(found.quantiles["energy"], wanted.quantiles["energy"], atol=1e-3)


def _fitted_on(classifier, images, classes):
    outputs = classifier.predict_branches(images.numpy())
    return outputs.logits, classes.numpy(), outputs.branch_logits


def test_the_numbers_of_int8_are_not_those_of_fp32(exported):
    numbers = [runtime.load(exported / file, device="cpu").metadata.confidence for file in export.FILES.values()]
    assert len({one.temperature for one in numbers}) == 3
    assert np.abs(np.subtract(numbers[0].quantiles["energy"], numbers[2].quantiles["energy"])).max() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_gives_the_probabilities_of_the_fitted_temperature(exported, held, precision):
    path = exported / export.FILES[precision]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == OUTPUTS
    found = dict(zip(OUTPUTS, session.run(None, {"image": held[0][:9].numpy()}), strict=True))
    temperature = runtime.load(path, device="cpu").metadata.confidence.temperature
    np.testing.assert_allclose(found["probabilities"], softmax(found["logits"] / temperature, axis=1), atol=1e-5)


def test_what_is_fitted_on_is_neither_trained_on_nor_tested_on_nor_measured_for_int8(run):
    model, record = load_checkpoint(run / "last.safetensors")
    found = export_images("digits", ["int8"], model, record, source=run, held_out=True)
    parts = {name: {image.numpy().tobytes() for batch, _ in found[name] for image in batch} for name in found}
    assert parts.keys() == {"images", "int8_images", "held_out"}
    _, held = load_data("digits").hold_out(RECIPE.validation, RECIPE.seed)
    assert len(parts["held_out"]) == len(held)
    for other in ("images", "int8_images"):
        assert not parts["held_out"] & parts[other]


def test_a_file_of_a_fixed_batch_that_preprocesses_carries_them_too(run, exported, held, tmp_path):
    model, _ = load_checkpoint(run / "last.safetensors")
    export.to_onnx(model, tmp_path / "model.onnx", held_out=[held], batch=7, preprocess=True)
    found, plain = (
        runtime.load(path, device="cpu").metadata.confidence
        for path in (tmp_path / "model.onnx", exported / "onnx/model.onnx")
    )
    assert found.temperature == pytest.approx(plain.temperature, rel=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda images, classes: images, "held_out must be images with their classes"),
        (lambda images, classes: [(images[:99], classes[:99])], "99 held-out pictures are too few"),
        (lambda images, classes: [(images[:, :, :4], classes)], r"held_out\[0\] has shape"),
        (lambda images, classes: [], "held_out is empty"),
        (lambda images, classes: [(images, classes + 1)], r"held_out\[0\] comes with the classes"),
    ],
)
def test_held_out_pictures_that_cannot_be_fitted_on_leave_no_file(run, held, tmp_path, images, message):
    model, _ = load_checkpoint(run / "last.safetensors")
    with pytest.raises(ConfigurationError, match=message):
        export.to_onnx(model, tmp_path / "model.onnx", held_out=images(*held))
    assert not any(tmp_path.iterdir())


def test_a_training_that_held_out_nothing_needs_pictures(run, tmp_path):
    from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint

    model, record = load_checkpoint(run / "last.safetensors")
    without = TrainingRecord(**{**vars(record), "recipe": {**record.recipe, "validation": 0.0}})
    save_checkpoint(tmp_path / "last.safetensors", model, without)
    refused = ccnn("export", tmp_path, "-o", tmp_path / "x.onnx", "--uncertainty")
    assert refused.returncode == 1
    assert "validation=0" in refused.stderr
    assert "--pictures" in refused.stderr
    stray = ccnn("export", tmp_path, "-o", tmp_path / "x.onnx", "--pictures", tmp_path)
    assert "--pictures is for --uncertainty" in stray.stderr
    assert not (tmp_path / "x.onnx").exists()
    from PIL import Image
    from sklearn.datasets import load_digits

    labels = load_data("digits").labels
    for number, (picture, target) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if number < 150:
            (tmp_path / "held" / labels[target]).mkdir(parents=True, exist_ok=True)
            pixels = (picture.reshape(8, 8) * 15.9375).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "held" / labels[target] / f"{number}.png")
    found = ccnn("export", tmp_path, "-o", tmp_path / "x.onnx", "--uncertainty", "--pictures", tmp_path / "held")
    assert found.returncode == 0, found.stderr
    assert runtime.load(tmp_path / "x.onnx", device="cpu").metadata.confidence.pictures == 150
