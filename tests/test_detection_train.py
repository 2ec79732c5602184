"""Contract of ccnn_zoo.detection.train_detector: the one trainer, on pictures with boxes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from detection_folders import voc_folder
from detector_network import LABELS, rectangles, seeded_detector
from torch import nn
from typer.testing import CliRunner

from ccnn_zoo.cli import app
from ccnn_zoo.detection import (
    create_detector,
    detect,
    evaluate_detector,
    load_detection_data,
    load_detector,
    train_detector,
)
from ccnn_zoo.detection._task import Detection
from ccnn_zoo.errors import ConfigurationError, TrainingInterrupted
from ccnn_zoo.train import Recipe, TrainingResult, build_optimizer, build_scheduler, read_history, train
from ccnn_zoo.train._meter import Meter
from ccnn_zoo.train._trainer import Trainer

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_type": "deep", "stem_width": 4}
TINY = Recipe(
    model="ccnn_resnet18",
    branches=2,
    data="voc:nowhere",
    epochs=3,
    batch_size=4,
    lr=0.02,
    warmup=0.1,
    weight_decay=5e-4,
    flip=0.5,
    evaluate_every=3,
    model_kwargs={
        "min_size": 72,
        "max_size": 96,
        "anchor_sizes": [16, 32, 64],
        "representation_size": 32,
        "rpn_post_nms_top_n_train": 100,
        "box_batch_size_per_image": 32,
        "backbone_kwargs": NARROW,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return voc_folder(tmp_path_factory.mktemp("data"), train=16, test=4)


@pytest.fixture(scope="module")
def recipe(folder) -> Recipe:
    return replace(TINY, data=f"voc:{folder}")


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> TrainingResult:
    return train_detector(replace(recipe, epochs=10, evaluate_every=4), tmp_path_factory.mktemp("run"), progress=False)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_training_lowers_the_loss_and_finds_the_shapes(trained):
    losses = [result.train_loss for result in trained.history]
    assert losses[-1] < 0.9 * losses[0]
    assert trained.history[-1].test_map_percent > 0


def test_the_folder_holds_the_detector_its_history_and_curves(trained):
    loaded, record = load_detector(trained.checkpoint)
    assert same_weights(loaded, trained.model)
    assert record == trained.record
    assert loaded.config["labels"] == ["disc", "square"]
    assert (trained.checkpoint.parent / "curves.png").read_bytes().startswith(b"\x89PNG")
    history = read_history(trained.checkpoint.parent / "history.csv")
    assert history == trained.history
    assert [result.test_map_percent is not None for result in history] == [n in (4, 8, 10) for n in range(1, 11)]
    assert all(result.train_error_percent is result.test_error_percent is None for result in history)


def test_the_precision_in_the_record_is_that_of_the_detector(trained, recipe):
    data = load_detection_data(recipe.data)
    figures = evaluate_detector(trained.model, data.test, data.labels)
    assert figures.voc.map_percent == pytest.approx(trained.record.metrics["test_map_percent"])
    assert set(figures.coco) >= {"AP", "AP50"}
    found = detect(trained.model, data.test)
    assert {each["labels"].dtype.kind for each in found} == {"i"}


def test_evaluation_finds_in_a_batch_what_each_picture_alone_gives(recipe):
    detector = seeded_detector()
    pictures = [rectangles(64, 160, seed=1), rectangles(160, 64, seed=2), rectangles(96, 120, seed=3)]
    with torch.no_grad():
        alone = [detector([picture])[0] for picture in pictures]
    none = [torch.zeros(len(each["labels"]), dtype=torch.bool) for each in alone]
    targets = [
        {"boxes": each["boxes"], "labels": each["labels"], "ignored": ignored}
        for each, ignored in zip(alone, none, strict=True)
    ]
    task = Detection(recipe)
    task.labels = LABELS
    with torch.no_grad():
        assert task.evaluate(detector, [(pictures, targets)], Accelerator(cpu=True)) == {"map_percent": 100.0}


def test_an_epoch_that_was_resumed_at_its_end_has_no_error_of_detectors():
    meter = Meter(3, 1, (8.0, 0, 4), classifies=False)
    assert meter.means(Accelerator(cpu=True)) == (2.0, None)


def test_a_run_that_was_interrupted_ends_in_the_same_weights(recipe, tmp_path, monkeypatch):
    whole = train_detector(recipe, tmp_path / "whole", progress=False)
    step = Trainer._step

    def stop_in_the_middle(self: Trainer, *args: object) -> None:
        step(self, *args)
        if self.step == 6:
            raise RuntimeError("power failure")

    kept = replace(recipe, save_every=5)
    monkeypatch.setattr(Trainer, "_step", stop_in_the_middle)
    with pytest.raises(RuntimeError, match="power failure"):
        train_detector(kept, tmp_path / "parts", progress=False)
    monkeypatch.setattr(Trainer, "_step", step)
    assert [path.name for path in (tmp_path / "parts/resume").iterdir() if path.name.startswith("step-00000005")]
    resumed = train_detector(kept, tmp_path / "parts", resume=True, progress=False)
    assert same_weights(whole.model, resumed.model)
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert replace(one, images_per_second=0) == replace(other, images_per_second=0)


def test_other_seeds_and_plain_networks_train_otherwise(recipe, tmp_path):
    short = replace(recipe, epochs=None, iterations=2)
    losses = {
        train_detector(changed, tmp_path / str(number), progress=False).history[-1].train_loss
        for number, changed in enumerate([short, replace(short, seed=1), replace(short, branches=1)])
    }
    assert len(losses) == 3


def test_held_out_pictures_choose_the_best_detector(recipe, tmp_path):
    result = train_detector(replace(recipe, validation=0.25, evaluate_every=1), tmp_path, progress=False)
    measured = [epoch.validation_map_percent for epoch in result.history]
    best = load_detector(tmp_path / "best.safetensors")[1]
    assert best.epochs == 1 + int(np.argmax(measured))
    assert best.metrics["validation_map_percent"] == max(measured)


@pytest.mark.parametrize("optimizer", ["csgd", "sgd"])
def test_frozen_normalisation_is_not_trained(optimizer):
    recipe = replace(TINY, optimizer=optimizer)
    model = create_detector("ccnn_resnet18", num_classes=2, frozen_norm=True, **TINY.model_kwargs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = build_optimizer(recipe, model)
    target = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
    sum(model.train()([torch.rand(3, 72, 96)], [target]).values()).backward()
    step.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "backbone.body.layer1.0.conv1.weight" in moved
    assert not [name for name in moved if ".bn" in name]


def test_the_recipe_of_table_4_has_the_papers_schedule():
    recipe = Recipe.load("voc07_detection")
    schedule = build_scheduler(recipe, build_optimizer(recipe, nn.Conv2d(1, 1, 1)), recipe.iterations)
    rates = {}
    for done in (0, 12_499, 12_500, 17_499):
        schedule.step_update(done)
        rates[done] = schedule.optimizer.param_groups[0]["lr"]
    assert list(rates.values()) == pytest.approx([0.004, 0.004, 0.0004, 0.0004])
    found = (recipe.iterations, recipe.batch_size, recipe.momentum, recipe.weight_decay)
    assert found == (17_500, 4, 0.9, 0.0005)
    options = {**recipe.model_kwargs, "backbone_weights": None}
    assert create_detector(recipe.model, num_classes=20, **options).transform.min_size == (600,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup": 0.2}, "mixup"),
        ({"image_size": 64}, "min_size"),
        ({"model_kwargs": {"colour": 1}}, "colour"),
        ({"model_kwargs": {"num_classes": 3}}, "num_classes"),
        ({"validation": 0.01}, "validation"),
        ({"start_from": "runs/first"}, "start_from"),
    ],
)
def test_recipes_that_fit_no_detector_are_refused(recipe, tmp_path, changes, named):
    with pytest.raises(ConfigurationError, match=named):
        train_detector(replace(recipe, **changes), tmp_path, progress=False)


def test_the_trainer_of_classifiers_names_that_of_detectors(recipe, tmp_path):
    with pytest.raises(ConfigurationError, match="train_detector"):
        train(recipe, tmp_path, progress=False)


def test_a_detector_is_trained_from_the_command_line(recipe, tmp_path):
    replace(recipe, epochs=1).to_yaml(tmp_path / "tiny.yaml")
    arguments = ["train", "--recipe", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run"), "--branches", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "test mAP" in done.output
    assert load_detector(tmp_path / "run/last.safetensors")[0].config["branches"] == 1


def test_the_command_line_goes_on_after_ctrl_c(recipe, tmp_path, monkeypatch):
    replace(recipe, epochs=1).to_yaml(tmp_path / "tiny.yaml")
    arguments = ["train", "--recipe", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run")]

    def interrupted(*_: object) -> None:
        raise TrainingInterrupted("stopped by SIGINT", 2)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_pass", interrupted)
        assert CliRunner().invoke(app, arguments).exit_code == 130
    assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes")
def test_two_processes_measure_what_one_does(tmp_path):
    # Five test pictures fill no whole number of batches, nor of processes.
    folder = voc_folder(tmp_path / "data", train=8, test=5)
    replace(TINY, data=f"voc:{folder}", evaluate_every=1).to_yaml(tmp_path / "tiny.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["train", "--recipe", tmp_path / "tiny.yaml", "--output", tmp_path / "run"]
    command = [*launcher, Path(sys.executable).parent / "ccnn", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    detector, record = load_detector(tmp_path / "run/last.safetensors")
    data = load_detection_data(f"voc:{folder}")
    found = evaluate_detector(detector, data.test, data.labels).voc.map_percent
    assert record.metrics["test_map_percent"] == pytest.approx(found)


def test_training_on_blood_cells_lowers_the_loss(tmp_path, real_data):
    source, place = real_data / "bccd/VOCdevkit/VOC2007", tmp_path / "VOC2007"
    (place / "ImageSets/Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (place / name).symlink_to(source / name)
    for part, count in (("trainval", 24), ("test", 4)):
        lines = (source / "ImageSets/Main" / f"{part}.txt").read_text().splitlines()[:count]
        (place / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(lines))
    recipe = replace(Recipe.load("bccd_detection"), data=f"voc:{place}", epochs=6, evaluate_every=6)
    result = train_detector(recipe, tmp_path / "run", progress=False)
    losses = [epoch.train_loss for epoch in result.history]
    assert result.model.config["labels"] == ["Platelets", "RBC", "WBC"]
    assert losses[-1] < 0.9 * losses[0]
