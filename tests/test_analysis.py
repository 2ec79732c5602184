"""The analysis of a real training, and what its parts measure."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_optim import assert_same_bits, calibrations, network, train
from typer.testing import CliRunner

from ccnn_zoo import CSGD
from ccnn_zoo.analysis import (
    Recorder,
    analyze,
    branch_disagreement,
    branch_diversity,
    calibration_distance,
    record_runs,
)
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.cli import app
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, build_model, load_data

RECIPE = Recipe.load("digits").to_dict() | {"branches": 2, "batch_size": 8, "lr": 0.02, "crop_padding": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe.from_mapping(RECIPE)
    model = build_model(recipe, load_data("digits"))
    path = tmp_path_factory.mktemp("run") / "last.safetensors"
    save_checkpoint(path, model, TrainingRecord("scikit-learn digits", 0, 1, recipe.to_dict()))
    return path


# Recording


def test_a_recorder_sees_w_and_r_before_the_first_and_after_every_step() -> None:
    model = network()
    optimizer = CSGD(model, calibration_lr=1.0)
    expected_w, expected_r = [], []

    def note() -> None:
        weights = [model[i].weight for i in (0, 3, 4)]
        expected_w.append(torch.cat([w.detach().flatten() for w in weights]))
        expected_r.append(calibrations(model)[1].detach().clone())

    note()
    with Recorder(model, optimizer, coordinates=10**6) as recorder:
        for step in range(3):
            train(model, optimizer, range(step, step + 1))
            note()
    train(model, optimizer, 1)  # not recorded any more
    seen = recorder.trajectory()
    assert torch.equal(seen.weights, torch.stack(expected_w))
    assert torch.equal(seen.calibrations["3"], torch.stack(expected_r))
    assert list(seen.calibrations) == ["0", "3", "4"]


def test_recording_changes_no_bit_of_the_training() -> None:
    models = [network(), network()]
    optimizers = [CSGD(model, noise_std=1e-2) for model in models]
    with Recorder(models[0], optimizers[0], coordinates=5):
        train(models[0], optimizers[0], 3)
    train(models[1], optimizers[1], 3)
    assert_same_bits(*models)


def test_the_coordinates_are_drawn_from_all_layers_and_none_twice() -> None:
    model = network()
    with torch.no_grad():
        start = 0
        for i in (0, 3, 4):
            count = model[i].weight.numel()
            model[i].weight.copy_(torch.arange(start, start + count).view_as(model[i].weight))
            start += count
    with Recorder(model, CSGD(model), coordinates=200) as recorder:
        values = recorder.trajectory().weights[0]
    assert values.unique().numel() == 200
    assert (values < 108).any()
    assert (values > 252).any()
    again = Recorder(model, CSGD(model), coordinates=200)
    with again:
        assert torch.equal(again.trajectory().weights[0], values), "the same in every run"


def test_runs_start_alike_differ_later_and_leave_the_network_as_it_was() -> None:
    recipe, data = Recipe.from_mapping(RECIPE), load_data("digits")
    model = build_model(recipe, data)
    before = deepcopy(model)
    runs = record_runs(model, recipe, data, runs=2, steps=2, coordinates=50)
    again = record_runs(model, recipe, data, runs=2, steps=2, coordinates=50)
    assert_same_bits(model, before)
    assert torch.equal(runs[0].weights[0], runs[1].weights[0])
    assert not torch.equal(runs[0].weights[-1], runs[1].weights[-1])
    assert all(torch.equal(a.weights, b.weights) and a.losses == b.losses for a, b in zip(runs, again, strict=True))
    for values in runs[0].calibrations.values():
        torch.testing.assert_close(values.sum(1), torch.ones_like(values[:, 0]))


# Diversity


def test_the_distance_of_two_branches_is_that_of_their_r() -> None:
    r = torch.tensor([[0.5, 0.2], [0.5, 0.8]]).view(2, 1, 2)
    assert calibration_distance(r) == pytest.approx(np.sqrt((0.0 + 0.36) / 2))
    assert calibration_distance(torch.full((4, 3, 3), 0.25)) == 0
    assert calibration_distance(torch.ones(1, 3, 3)) == 0


def test_disagreement_is_the_share_of_images_mean_over_pairs() -> None:
    classes = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 1], [0, 1, 2, 1]])  # differ on 2, 1 and 1 of 4 images
    logits = torch.nn.functional.one_hot(classes, 3).float()
    assert branch_disagreement(logits) == pytest.approx((2 + 1 + 1) / 3 / 4)
    assert branch_disagreement(logits[:1]) == 0


def test_equal_branches_never_disagree_and_err_as_the_network_does() -> None:
    torch.manual_seed(0)
    model = timm.create_model("ccnn_resnet18_cifar", branches=3, num_classes=5).train()
    for layer in model.modules():
        if hasattr(layer, "reset_calibration"):
            layer.reset_calibration(diversity=0)
    found = branch_diversity(model, [(torch.randn(6, 3, 32, 32), torch.arange(6) % 5)])
    assert set(found.calibration_distance.values()) == {0.0}
    assert found.disagreement == 0
    assert found.branch_error_percent == (found.error_percent,) * 3
    assert model.training, "left in the mode it was in"


def test_a_folded_network_is_refused() -> None:
    model = fold(timm.create_model("ccnn_resnet18_cifar", branches=2))
    with pytest.raises(ConfigurationError, match="as it was trained, not folded"):
        branch_diversity(model, [])


# The whole


@pytest.mark.parametrize("from_scratch", [False, True])
def test_an_analysis_writes_what_it_found_as_json_and_pictures(
    checkpoint: Path, tmp_path: Path, from_scratch: bool
) -> None:
    found = analyze(checkpoint.parent, tmp_path, runs=3, steps=3, coordinates=20, from_scratch=from_scratch)
    assert json.loads((tmp_path / "analysis.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "analysis.json",
        "bounds.png",
        "calibration.png",
        "diversity.png",
    ]
    for picture in tmp_path.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5, "not blank"
    assert found.settings["lr"] == pytest.approx(0.02 if from_scratch else 0.002)
    assert len(found.bound.constants) == 3
    assert len(found.bound.measured_sums) == 3
    assert all(len(values) == 4 for values in found.calibration_distance.values())
    model, _ = load_checkpoint(checkpoint)
    first, _ = found.calibrations["conv1"]
    torch.testing.assert_close(torch.tensor(first), model.conv1.calibration.detach())
    for share, total in zip(found.bound.measured_shares, found.bound.totals, strict=True):
        assert share <= total


def test_the_command_says_what_was_found(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["analyze", str(checkpoint), "-o", str(tmp_path), "--runs", "2", "--steps", "1", "--data", "digits"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "two branches disagree on" in result.output
    assert (tmp_path / "analysis.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 1}, "runs must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"coordinates": 0}, "coordinates must be at least 1"),
        ({"data": "nothing"}, "data must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    checkpoint: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        analyze(checkpoint, tmp_path, **options)
