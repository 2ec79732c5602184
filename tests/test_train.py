"""Contract of ccnn_zoo.train.train: reproducible, honest in its figures, and nothing is lost when it stops."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_transform
from torch import nn

import ccnn_zoo
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError, NonFiniteLossError, RepositoryError
from ccnn_zoo.train import (
    EpochResult,
    Recipe,
    TrainingResult,
    build_model,
    build_optimizer,
    build_scheduler,
    draw_curves,
    evaluation_batches,
    load_data,
    plot_curves,
    read_history,
    train,
)
from ccnn_zoo.train._batches import ShuffledOrder, view_of
from ccnn_zoo.train._history import write_history

TINY = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    branches=2,
    data="digits",
    epochs=2,
    batch_size=128,
    lr=0.1,
    crop_padding=1,
    calibration_lr=0.1,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TrainingResult:
    output = tmp_path_factory.mktemp("tiny")
    (output / ".last-killed.safetensors").write_bytes(b"left by a killed run")
    return train(TINY, output, progress=False)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# What a run leaves


def test_the_folder_holds_checkpoint_history_curves_and_recipe(tiny):
    assert sorted(os.listdir(tiny.checkpoint.parent)) == [
        "confidence.png",
        "curves.png",
        "doubtful.png",
        "environment.json",
        "history.csv",
        "last.safetensors",
        "recipe.yaml",
        "resume",
    ]
    assert Recipe.from_yaml(tiny.checkpoint.parent / "recipe.yaml") == TINY
    for name in ("confidence", "curves", "doubtful"):
        assert Image.open(tiny.checkpoint.parent / f"{name}.png").format == "PNG"


def test_the_checkpoint_is_the_result(tiny):
    model, record = load_checkpoint(tiny.checkpoint)
    assert same_weights(model, tiny.model)
    assert not tiny.model.training
    assert record == tiny.record
    assert (record.data, record.seed, record.epochs) == ("scikit-learn digits", 0, 2)
    assert Recipe.from_mapping(record.recipe) == TINY
    assert record.versions["ccnn-zoo"] == ccnn_zoo.__version__


def test_versions_revision_and_device_are_written_beside_the_checkpoint(tiny):
    environment = json.loads((tiny.checkpoint.parent / "environment.json").read_text())
    assert environment["versions"] == tiny.record.versions
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (environment["device"], environment["processes"]) == ("cpu", 1) or torch.cuda.is_available()
    root = Path(ccnn_zoo.__file__).parents[1]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("the package does not run from a git checkout")
    assert len(environment["git_revision"].removesuffix("-dirty")) == len(head.stdout.strip())


def test_a_full_disk_is_named_whatever_is_written(tmp_path):
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writers = [
        lambda: TINY.to_yaml(tmp_path / "recipe.yaml"),
        lambda: write_history(history([9.0, 4.0]), tmp_path / "history.csv"),
        lambda: plot_curves({"plain": history([9.0, 4.0])}, tmp_path / "curves.png"),
    ]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for write in writers:
            with pytest.raises(RepositoryError, match=r"cannot write .*What was there before is kept; free some space"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert os.listdir(tmp_path) == []


def test_the_network_knows_its_labels_and_preprocessing(tiny):
    data = load_data("digits")
    cfg = load_checkpoint(tiny.checkpoint)[0].pretrained_cfg
    assert list(cfg["label_names"]) == list("0123456789")
    assert cfg["num_classes"] == 10
    assert tuple(cfg["input_size"]) == (1, 8, 8)
    assert tuple(cfg["mean"]) == pytest.approx(data.mean)
    assert tuple(cfg["std"]) == pytest.approx(data.std)
    assert cfg["crop_pct"] == 1.0


def test_the_reported_test_figures_are_those_of_the_saved_network(tiny):
    data = load_data("digits")
    model, record = load_checkpoint(tiny.checkpoint)
    transform = create_transform(**data.preprocessing(), is_training=False)
    images = torch.stack([transform(picture) for picture, _ in data.test])
    with torch.no_grad():
        logits = model(images)
    wrong = (logits.argmax(1) != data.test.targets).double().mean().item()
    assert record.metrics["test_error_percent"] == pytest.approx(100 * wrong)
    assert record.metrics["test_loss"] == pytest.approx(F.cross_entropy(logits, data.test.targets).item(), rel=1e-4)


def test_a_history_that_a_spreadsheet_saved_is_read(tiny, tmp_path):
    text = (tiny.checkpoint.parent / "history.csv").read_text(encoding="utf-8")
    (tmp_path / "history.csv").write_text(text, encoding="utf-8-sig")
    assert read_history(tmp_path / "history.csv") == tiny.history


def test_the_history_file_is_the_history(tiny):
    assert read_history(tiny.checkpoint.parent / "history.csv") == tiny.history
    assert [result.epoch for result in tiny.history] == [1, 2]
    assert [result.step for result in tiny.history] == [11, 22]  # 1,437 images are 11 whole batches of 128
    with (tiny.checkpoint.parent / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[1]["test_error_percent"]) == tiny.record.metrics["test_error_percent"]


def test_calibration_kernels_are_learned_and_stay_normalised(tiny):
    start = dict(build_model(TINY, load_data("digits")).named_parameters())
    for name, value in tiny.model.named_parameters():
        if name.endswith(".calibration"):
            assert not torch.equal(value, start[name])
            assert (value >= 0).all()
            torch.testing.assert_close(value.sum(0), torch.ones_like(value[0]), atol=1e-6, rtol=0)


# Reproducibility


def test_the_same_seed_gives_the_same_weights_to_the_bit(tiny, tmp_path):
    torch.rand(3)  # whatever was drawn before does not matter
    again = train(TINY, tmp_path, progress=False, pictures=False)
    assert same_weights(again.model, tiny.model)
    untimed = [replace(result, images_per_second=0) for result in again.history]
    assert untimed == [replace(result, images_per_second=0) for result in tiny.history]


def test_another_seed_gives_other_weights(tiny, tmp_path):
    other = train(replace(TINY, seed=1, epochs=1), tmp_path, progress=False, pictures=False)
    assert not torch.equal(other.model.conv1.weight, tiny.model.conv1.weight)


def test_iterations_end_a_run_in_the_middle_of_an_epoch(tiny, tmp_path):
    recipe = replace(TINY, epochs=None, iterations=13, scheduler="constant")
    result = train(recipe, tmp_path, progress=False, pictures=False)
    assert [r.step for r in result.history] == [11, 13]


# The algorithm


def test_a_plain_network_by_sgd_takes_the_steps_of_torchs_sgd(tmp_path):
    """Written out by hand: images in the run's order, torch's own SGD, no noise, no schedule."""
    recipe = replace(
        TINY, branches=1, optimizer="sgd", epochs=1, scheduler="constant", crop_padding=0, batch_size=479, seed=3
    )
    result = train(recipe, tmp_path, progress=False, pictures=False)

    data = load_data("digits")
    model = build_model(recipe, data)
    weights = [p for name, p in model.named_parameters() if not name.endswith("calibration")]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = data.train.pixels.permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    order = torch.tensor(list(ShuffledOrder(view_of(data.train, data), recipe.seed)))
    losses = []
    model.train()
    for batch in order.split(479):
        loss = F.cross_entropy(model(images[batch]), data.train.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for (name, expected), got in zip(model.named_parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
    assert result.history[0].train_loss == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_csgd_without_noise_trains_a_plain_network_as_sgd_does(tmp_path):
    plain = replace(TINY, branches=1, epochs=1, noise_std=0.0)
    by_csgd = train(plain, tmp_path / "csgd", progress=False, pictures=False)
    by_sgd = train(replace(plain, optimizer="sgd"), tmp_path / "sgd", progress=False, pictures=False)
    assert same_weights(by_csgd.model, by_sgd.model)


def test_sgd_leaves_the_calibration_kernels_as_they_were_drawn(tmp_path):
    recipe = replace(TINY, optimizer="sgd", epochs=1)
    result = train(recipe, tmp_path, progress=False, pictures=False)
    start = dict(build_model(recipe, load_data("digits")).named_parameters())
    for name, value in result.model.named_parameters():
        assert torch.equal(value, start[name]) == name.endswith("calibration")


def test_the_optimizer_gets_every_value_of_the_recipe():
    recipe = replace(TINY, lr=0.3, momentum=0.7, weight_decay=0.2, noise_std=0.1, calibration_lr=0.4)
    recipe = replace(recipe, calibration_update="ascent")
    optimizer = build_optimizer(recipe, build_model(recipe, load_data("digits")))
    assert isinstance(optimizer, ccnn_zoo.CSGD)
    decayed, calibration = sorted(optimizer.param_groups, key=lambda group: -group["weight_decay"])
    assert (decayed["weight_decay"], calibration["weight_decay"]) == (0.2, 0.0)
    assert {parameter.ndim for parameter in calibration["params"]} == {3}  # timm sets R apart, and R alone
    for group in optimizer.param_groups:
        for name in ("lr", "momentum", "noise_std", "calibration_lr", "calibration_update"):
            assert group[name] == getattr(recipe, name)


def learning_rates(steps: int, **kwargs) -> list[float]:
    recipe = replace(TINY, lr=1.0, **kwargs)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = build_scheduler(recipe, optimizer, steps)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return rates


def test_learning_rates_follow_the_schedule():
    assert learning_rates(4, scheduler="constant") == [1, 1, 1, 1]
    assert learning_rates(4, scheduler="cosine") == pytest.approx(
        [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    )
    assert learning_rates(8, scheduler="multistep", decay_at=(0.5, 0.75)) == pytest.approx(
        [1] * 4 + [0.1] * 2 + [0.01] * 2
    )
    assert learning_rates(6, scheduler="step", decay_at=(1 / 3,), decay_rate=0.5) == pytest.approx(
        [1, 1, 0.5, 0.5, 0.25, 0.25]
    )
    assert learning_rates(8, scheduler="constant", warmup=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_validation_images_are_evaluated_and_not_trained_on(tmp_path):
    result = train(replace(TINY, validation=0.5, epochs=1), tmp_path, progress=False, pictures=False)
    assert result.history[0].step == 5  # 718 images are 5 whole batches
    assert result.record.metrics["validation_loss"] > 0
    assert "validation_error_percent" in result.record.metrics


@pytest.mark.parametrize("options", [{"mixed_precision": "bf16"}, {"channels_last": True}], ids=str)
def test_other_precisions_and_layouts_train(tiny, tmp_path, options):
    result = train(replace(TINY, epochs=1, **options), tmp_path, progress=False, pictures=False)
    assert result.model.conv1.weight.dtype == torch.float32
    assert result.history[0].train_loss == pytest.approx(tiny.history[0].train_loss, abs=0.1)


# What goes wrong


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step_and_keeps_the_last_checkpoint(tmp_path):
    recipe = replace(TINY, epochs=3, lr=1e30, warmup=0.5, noise_std=0.0)
    train(replace(TINY, epochs=1), tmp_path, progress=False, pictures=False)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(NonFiniteLossError, match=r"loss became .* in epoch 1 at step \d+\. Lower lr"):
        train(recipe, tmp_path, progress=False, pictures=False)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    load_checkpoint(tmp_path / "last.safetensors")


def test_a_last_step_that_ruins_the_network_is_seen_before_it_is_saved(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"evaluation loss became .* in epoch 1 at step 1"):
        train(replace(TINY, batch_size=1437, epochs=1, lr=1e30), tmp_path, progress=False, pictures=False)
    assert sorted(os.listdir(tmp_path)) == ["environment.json", "recipe.yaml"]


def test_divergence_in_a_later_epoch_keeps_the_epochs_before(tmp_path, monkeypatch):
    def cross_entropy(logits, targets, reduction="mean", label_smoothing=0.0, calls=[0]):  # noqa: B006, counts over calls
        calls[0] += reduction == "mean"
        loss = nn.functional.nll_loss(logits.log_softmax(1), targets, reduction=reduction)
        return loss * float("nan") if calls[0] == 15 and reduction == "mean" else loss

    monkeypatch.setattr("torch.nn.functional.cross_entropy", cross_entropy)
    with pytest.raises(NonFiniteLossError, match="training loss became nan in epoch 2 at step 15"):
        train(TINY, tmp_path, progress=False)
    model, record = load_checkpoint(tmp_path / "last.safetensors")
    assert record.epochs == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert len(read_history(tmp_path / "history.csv")) == 1
    assert (tmp_path / "curves.png").is_file()


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="batch_size=2000 exceeds the 1437"):
        train(replace(TINY, batch_size=2000), tmp_path, progress=False, pictures=False)


def test_arguments_that_the_network_does_not_know_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="wings"):
        train(replace(TINY, model_kwargs={"wings": 2}), tmp_path, progress=False, pictures=False)


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot write"):
        train(TINY, tmp_path / "file" / "run", progress=False, pictures=False)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_the_command_ends_on_ctrl_c_with_its_state_saved_and_a_word_how_to_go_on(tmp_path):
    TINY.to_yaml(tmp_path / "start.yaml")
    run = subprocess.Popen(
        [Path(sys.executable).with_name("ccnn"), "train", "--recipe=start.yaml", "--epochs=100000", "--output=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    for epoch in (1, 2):  # one line per epoch, since stderr is no terminal
        assert f"K=2 {epoch}/100000" in run.stderr.readline()
    run.send_signal(signal.SIGINT)
    said = run.stderr.read().splitlines()[-1]
    assert run.wait() == 128 + signal.SIGINT
    assert re.fullmatch(r"stopped by SIGINT after step \d+ of 1100000 .* saved in run; --resume .* from there", said)
    _, record = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert record.epochs == len(read_history(tmp_path / "run" / "history.csv")) >= 2
    assert (tmp_path / "run" / "curves.png").is_file()


# Progress and curves


def test_progress_is_off_when_asked(tmp_path, capfd):
    train(replace(TINY, epochs=1), tmp_path, progress=False, pictures=False)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr_one_line_per_epoch_where_there_is_no_terminal(tmp_path, capfd):
    train(TINY, tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if "K=2" in line]
    assert [line.split()[2] for line in lines] == ["1/2:", "2/2:"]


def history(errors: list[float]) -> tuple[EpochResult, ...]:
    return tuple(EpochResult(n + 1, n + 1, 0.1, 1.0, e / 2, 1.0, e, None, None, 10.0) for n, e in enumerate(errors))


def test_curves_of_several_networks_share_one_picture(tmp_path):
    plot_curves({"plain": history([9.0, 4.0, 3.0]), "K=4": history([9.0, 3.0, 2.0])}, tmp_path / "both.png")
    plot_curves({"plain": history([9.0, 4.0, 3.0])}, tmp_path / "one.png")
    both, one = (Image.open(tmp_path / name).convert("RGB") for name in ("both.png", "one.png"))
    orange = (255, 127, 14)  # matplotlib's second colour
    assert orange in {colour for _, colour in both.getcolors(1 << 20)}
    assert orange not in {colour for _, colour in one.getcolors(1 << 20)}


def test_curves_of_a_detector_are_its_loss_and_on_an_axis_of_its_own_its_precision(tmp_path):
    precision = [None, 40.0, 62.5]
    epochs = [EpochResult(n + 1, n + 1, 0.1, 2.0 - n / 2, test_map_percent=p) for n, p in enumerate(precision)]
    figure = Figure()
    axes = figure.add_subplot()
    draw_curves(axes, {"detector": tuple(epochs)})
    loss, beside = figure.axes
    assert (loss.get_ylabel(), beside.get_ylabel()) == ("loss (dashed)", "mean average precision (%)")
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 2], [2, 1.5], [3, 1]]]
    assert [line.get_xydata().tolist() for line in beside.lines] == [[[2, 40], [3, 62.5]]]


def test_curves_leave_matplotlibs_global_state_alone(tmp_path):
    before = dict(mpl.rcParams)
    plot_curves({"a": history([3.0])}, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_curves_of_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at least one"):
        plot_curves({"a": ()}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("content", [None, "", "epoch,step\n1,2\n", "nonsense\n1\n"])
def test_a_file_that_is_no_history_is_refused(tmp_path, content):
    path = tmp_path / "history.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RepositoryError, match=r"history\.csv"):
        read_history(path)


def test_a_network_that_no_file_could_give_back_is_refused_before_the_first_step(tmp_path):
    recipe = replace(TINY, model="resnet18", model_kwargs={"act_layer": nn.SiLU})
    with pytest.raises(ConfigurationError, match="act_layer"):
        train(recipe, tmp_path / "run", progress=False, pictures=False)
    assert not list(tmp_path.rglob("*.safetensors")), "not one step was taken"


def test_weights_of_a_network_of_somebody_elses_making_load_into_such_a_network(tmp_path):
    def build(recipe: Recipe, data: object) -> nn.Module:
        torch.manual_seed(recipe.seed)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))

    recipe = replace(TINY, optimizer="sgd", epochs=1)
    result = train(recipe, tmp_path / "run", progress=False, pictures=False, build=build)
    fresh = build(replace(recipe, seed=1), None)
    loaded, record = load_checkpoint(result.checkpoint, into=fresh)
    assert loaded is fresh
    images, _ = next(iter(evaluation_batches(load_data("digits"))))
    torch.testing.assert_close(loaded(images), result.model(images))
    assert record.recipe["optimizer"] == "sgd"
    with pytest.raises(ConfigurationError, match="into=network"):
        load_checkpoint(result.checkpoint)
