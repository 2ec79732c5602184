"""Numbers of confidence where files are made: each precision gets its own, of pictures that nothing else has seen."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import scipy.stats
import timm
import torch
from forks import ccnn, python
from scipy.special import softmax
from sklearn.metrics import log_loss

from ccnn_zoo import export, hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.cli import main
from ccnn_zoo.errors import ConfigurationError, IntegrityError, MetadataError
from ccnn_zoo.train import Recipe, _doubt, evaluation_batches, load_data, train
from ccnn_zoo.uncertainty import COVERAGES, Confidence, fit, prediction_sets

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
def drawn() -> dict[str, tuple]:
    """What the training gave to be drawn, by function."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, drawn) -> Path:
    """A training folder of a small network for digits, which held out a fifth."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        for draw in (_doubt.draw_confidence, _doubt.draw_doubtful):

            def spy(*arguments, draw=draw):
                drawn[draw.__name__] = arguments
                draw(*arguments)

            patch.setattr(_doubt, draw.__name__, spy)
        train(RECIPE, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def held() -> tuple[torch.Tensor, torch.Tensor]:
    data, held = load_data("digits").hold_out(0.2, RECIPE.seed)
    images, classes = zip(*evaluation_batches(type(data)(**{**vars(data), "test": held})), strict=True)
    return torch.cat(images), torch.cat(classes)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """The repository of that network, in three precisions."""
    folder = tmp_path_factory.mktemp("exported") / "digits"
    found = ccnn("publish", run, f"local:{folder}", "--fp16", "--int8")
    assert found.returncode == 0, found.stderr
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


def kept_by_chance(fitted: int, tested: int, coverage: float) -> tuple[float, float]:
    """Between which numbers of sets hold the true class, 999 times of 1,000, of a kept promise (Vovk 2012)."""
    rank = math.ceil((fitted + 1) * coverage - 1e-9)
    return scipy.stats.betabinom.interval(0.999, tested, rank, fitted + 1 - rank)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_on_digits_the_sets_of_every_precision_hold_what_they_promise(exported, precision):
    classifier = runtime.load(exported, precision=precision, device="cpu")
    images, classes = map(torch.cat, zip(*evaluation_batches(load_data("digits")), strict=True))
    _check_coverage(classifier.predict(images.numpy()), classes.numpy(), classifier.metadata.confidence)


def _check_coverage(logits: np.ndarray, targets: np.ndarray, numbers: Confidence) -> None:
    probability = softmax(logits.astype(float) / numbers.temperature, axis=1)
    right = probability.argmax(1) == targets
    sizes = []
    for coverage in COVERAGES:
        members = prediction_sets(probability, numbers.threshold_of_set(coverage))
        held = members[np.arange(len(targets)), targets]
        low, high = kept_by_chance(numbers.pictures, len(targets), coverage)
        # A set holds the most probable class in any case, which is more than a small coverage asks for.
        assert low <= held.sum() <= max(high, right.sum())
        sizes.append(members.sum(1).mean())
    assert sizes == sorted(sizes)
    assert sizes[0] < 5, "sets of everything hold everything"


@pytest.mark.parametrize(("name", "place"), [("mnist", "mnist:{}"), ("cifar10", "cifar10:{}/cifar10-jpeg.tar.xz")])
def test_on_mnist_and_cifar10_the_sets_and_decisions_of_the_shipped_networks_keep_their_promises(
    real_data, tmp_path, name, place
):
    model = timm.create_model(f"ccnn_resnet18_cifar.{name}", pretrained=True).eval()
    images, classes = map(torch.cat, zip(*evaluation_batches(load_data(place.format(real_data))), strict=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:3000]
    one, other = order[:1500], order[1500:]
    export.to_onnx(model, tmp_path / "model.onnx", held_out=[(images[one], classes[one])])
    classifier = runtime.load(tmp_path / "model.onnx", device="cpu")
    logits, targets = classifier.predict(images[other].numpy()), classes[other].numpy()
    numbers = classifier.metadata.confidence
    assert numbers.pictures == 1500
    _check_coverage(logits, targets, numbers)
    probability = softmax(logits.astype(float) / numbers.temperature, axis=1)
    for risk in (0.05, 0.1):
        decided = probability.max(1) >= numbers.threshold_of_decision(risk)
        assert decided.sum() > 300
        wrong = (probability.argmax(1) != targets)[decided].sum()
        assert wrong <= scipy.stats.binom.ppf(0.999, decided.sum(), risk)


def test_the_numbers_of_int8_are_not_those_of_fp32(exported):
    numbers = [runtime.load(exported / file, device="cpu").metadata.confidence for file in export.FILES.values()]
    assert len({one.temperature for one in numbers}) == 3
    assert np.abs(np.subtract(numbers[0].quantiles["energy"], numbers[2].quantiles["energy"])).max() > 0.01


def test_export_and_publish_write_the_same_file(run, exported, tmp_path):
    found = ccnn("export", run, "-o", tmp_path / "model.onnx", "--uncertainty")
    assert found.returncode == 0, found.stderr
    assert f"{HELD} images; temperature" in found.stdout
    assert (tmp_path / "model.onnx").read_bytes() == (exported / "onnx/model.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_gives_the_probabilities_of_the_fitted_temperature(exported, held, precision):
    path = exported / export.FILES[precision]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == OUTPUTS
    found = dict(zip(OUTPUTS, session.run(None, {"image": held[0][:9].numpy()}), strict=True))
    temperature = runtime.load(path, device="cpu").metadata.confidence.temperature
    np.testing.assert_allclose(found["probabilities"], softmax(found["logits"] / temperature, axis=1), atol=1e-5)


def test_what_is_fitted_on_is_neither_trained_on_nor_tested_on_nor_measured_for_int8(run, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(export, "to_onnx", lambda *_, **options: found.update(options) or sys.exit())
    asked = ["ccnn", "export", str(run), "-o", f"{tmp_path}/x.onnx", "-p", "int8", "--uncertainty"]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit):
        main()
    batched = {"images", "int8_images", "held_out"}
    parts = {name: {image.numpy().tobytes() for batch, _ in found[name] for image in batch} for name in batched}
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


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def repository(exported, tmp_path) -> Path:
    shutil.copytree(exported, tmp_path / "digits")
    return tmp_path / "digits"


def rewritten(folder: Path, change) -> None:
    """Change what the manifest says of confidence."""
    manifest = manifest_of(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_manifest_says_of_every_file_what_it_carries(exported):
    said = manifest_of(exported)["confidence"]
    assert said.keys() == set(export.FILES.values())
    for path, numbers in said.items():
        assert Confidence.from_json(json.dumps(numbers)) == runtime.load(exported / path).metadata.confidence
    assert hub.download(f"local:{exported}") == exported


def _set(*place, value):
    def change(manifest):
        *way, last = place
        inner = manifest["confidence"]
        for name in way:
            inner = inner[name]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("onnx/model.onnx", "temperature", value=1.5), "onnx/model.onnx carries other numbers"),
        (_set("onnx/model_quantized.onnx", "decide", "0.1", value=0.0), "quantized.onnx carries other numbers"),
        (_set("onnx/model.onnx", "temperature", value=0), r"malformed numbers: .*temperature must be .* got 0"),
        (_set("onnx/model.onnx", "temperature", value=float("nan")), "temperature must be .* got nan"),
        (_set("onnx/model.onnx", "sets", "lac", "1.5", value=0.5), "sets must be"),
        (_set("onnx/model_fp16.onnx", value=None), "model_fp16.onnx carries other numbers"),
        (_set("onnx/model_fp16.onnx", value=[]), "model_fp16.onnx has malformed numbers"),
        (_set("onnx/other.onnx", value={}), "has in 'confidence' no table by its files"),
        (lambda manifest: manifest.update(confidence=[]), "has in 'confidence' no table by its files"),
    ],
)
def test_a_manifest_with_other_or_absurd_numbers_is_refused(repository, change, message):
    rewritten(repository, change)
    with pytest.raises(IntegrityError, match=message):
        hub.download(f"local:{repository}")


def test_absurd_numbers_in_a_file_are_refused_though_its_sum_is_right(repository, run):
    path = repository / "onnx/model.onnx"
    model = onnx.load(path)
    numbers = manifest_of(repository)["confidence"]["onnx/model.onnx"] | {"temperature": 0}
    for entry in model.metadata_props:
        if entry.key == "confidence":
            entry.value = json.dumps(numbers)
    onnx.save(model, path)
    content = path.read_bytes()
    sums = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    def change(manifest):
        manifest["files"]["onnx/model.onnx"] = sums
        manifest["confidence"]["onnx/model.onnx"] = numbers

    rewritten(repository, change)
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx has malformed numbers: .*temperature"):
        hub.download(f"local:{repository}")
    before = set(repository.parent.iterdir())
    with pytest.raises(MetadataError, match="temperature"):
        hub.publish(run / "last.safetensors", f"local:{repository.parent}/new", networks={"fp16": path})
    assert set(repository.parent.iterdir()) == before


def test_a_manifest_from_before_there_were_numbers_is_read(repository):
    rewritten(repository, lambda manifest: manifest.pop("confidence"))
    assert hub.download(f"local:{repository}") == repository


def test_the_card_says_what_was_measured_on_the_test_part(exported):
    card = (exported / "README.md").read_text()
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.count(" | ") == 3]
    assert cells[0] == ["on the test part, 360 pictures", "fp32", "fp16", "int8"]
    table = {name: values for name, *values in cells}
    images, classes = map(torch.cat, zip(*evaluation_batches(load_data("digits")), strict=True))
    for column, precision in ((0, "fp32"), (2, "int8")):
        classifier = runtime.load(exported, precision=precision, device="cpu")
        logits, numbers = classifier.predict(images.numpy()), classifier.metadata.confidence
        probability = softmax(logits.astype(float) / numbers.temperature, axis=1)
        held = probability[np.arange(360), classes] >= 1 - numbers.sets["lac"]["0.95"] - 1e-9
        held |= probability.argmax(1) == classes.numpy()
        wanted = {
            "error": 100 * np.mean(logits.argmax(1) != classes.numpy()),
            "NLL, as trained": log_loss(classes, softmax(logits.astype(float), axis=1)),
            "NLL, with the temperature": log_loss(classes, probability),
            "sets for 95 %: hold the true class": 100 * held.mean(),
        }
        for name, value in wanted.items():
            assert float(table[name][column].removesuffix(" %")) == pytest.approx(value, abs=0.006), name
    assert "was not measured" in card, "no pictures of other things were at hand"


def test_the_example_of_the_card_runs(exported):
    card = (exported / "README.md").read_text()
    (example,) = re.findall(
        r"```python\n(from ccnn_zoo import runtime.*?max_risk.*?)```", card[card.index("## Unc") :], re.S
    )
    found = python(example, folder=exported)
    assert found.returncode == 0, found.stderr
    assert re.match(r"\('", found.stdout)


def test_the_twenty_pictures_of_most_entropy_are_drawn_with_what_each_branch_says(run, drawn, held):
    pictures, path = drawn["draw_doubtful"]
    assert path == run / "doubtful.png"
    model, _ = load_checkpoint(run / "last.safetensors")
    images, classes = map(torch.cat, zip(*evaluation_batches(load_data("digits")), strict=True))
    with torch.inference_mode():
        logits, branches = model(images).numpy(), model.forward_branches(images).numpy()
        on_held_out = model(held[0]).numpy(), model.forward_branches(held[0]).numpy()
    numbers = fit(on_held_out[0], held[1].numpy(), on_held_out[1])
    probability = softmax(logits.astype(float) / numbers.temperature, axis=1)
    doubts = scipy.stats.entropy(probability, axis=1)
    assert len(pictures) == 20
    order = np.argsort(-doubts)[:20]
    assert len(set(np.round(doubts[order], 5))) == 20, "else the order is chance"
    for row, picture in zip(order, pictures, strict=True):
        assert (picture.label, picture.said) == (str(classes[row].item()), str(logits[row].argmax()))
        assert picture.probability == pytest.approx(probability[row].max(), abs=1e-5)
        assert picture.branches == tuple(map(str, branches[:, row].argmax(-1)))
        np.testing.assert_array_equal(picture.pixels[:, :, 0], load_data("digits").test.pixels[row, :, :, 0])


def test_strange_pictures_are_the_same_pixels_elsewhere(run, drawn):
    logits, targets, numbers, scores, path = drawn["draw_confidence"]
    assert (path, len(logits), len(targets), numbers.pictures) == (run / "confidence.png", 360, 360, HELD)
    assert (len(scores.usual), len(scores.strange)) == (360, 360)
    assert scores.strange.mean() > scores.usual.mean()
    images = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    ((shuffled, _),) = _doubt._shuffled([(images.clone(), torch.zeros(2))])
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten(2).sort(-1).values, images.flatten(2))
    assert torch.equal(shuffled[:, 1] - shuffled[:, 0], torch.full((2, 4, 5), 20.0)), "the colours stay together"


def test_the_card_shows_the_pictures_of_the_training_and_the_test_pictures_can_be_left_out(run, exported, tmp_path):
    card = (exported / "README.md").read_text()
    for name in ("confidence", "doubtful"):
        assert f"(pictures/{name}.png)" in card
        assert (exported / f"pictures/{name}.png").read_bytes() == (run / f"{name}.png").read_bytes()
    found = ccnn("publish", run, f"local:{tmp_path}/digits", "--dry-run", "--no-test-pictures")
    assert found.returncode == 0, found.stderr
    assert "pictures/confidence.png" in found.stdout
    assert "doubtful" not in found.stdout
    with pytest.raises(ConfigurationError, match=r"pictures must be a table by confidence, doubtful, got \['x'\]"):
        hub.publish(run / "last.safetensors", f"local:{tmp_path}/digits", pictures={"x": run / "curves.png"})
