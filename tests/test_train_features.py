"""Contract of what a recipe can add to plain training: passes, averages, augmentation, compilation, logs."""

from __future__ import annotations

import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ccnn_zoo.checkpoint import load_checkpoint, save_checkpoint
from ccnn_zoo.errors import ConfigurationError, RepositoryError
from ccnn_zoo.train import Recipe, build_model, load_data, read_history, train
from ccnn_zoo.train._augment import Objective
from ccnn_zoo.train._batches import PictureView, view_of
from ccnn_zoo.train._network import trained_form

TINY = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    branches=2,
    data="digits",
    epochs=1,
    batch_size=128,
    crop_padding=1,
)
# Nothing in it depends on which images share a pass.
FREE_OF_STATISTICS = Recipe(
    model="ccnn_nin",
    model_kwargs={"drop_rate": 0.0},
    branches=2,
    data="digits",
    iterations=4,
    batch_size=32,
    lr=0.01,
    noise_std=1e-2,
)


def test_a_second_stage_starts_from_the_weights_of_the_first(tmp_path):
    first = train(TINY, tmp_path / "first", progress=False, pictures=False)
    still = replace(TINY, lr=0.0, calibration_lr=0.0, noise_std=0.0, seed=1, start_from=str(tmp_path / "first"))
    second = train(replace(still, ema_decay=0.9), tmp_path / "second", progress=False, pictures=False)
    for (name, value), wanted in zip(second.model.named_parameters(), first.model.parameters(), strict=True):
        assert torch.allclose(value, wanted, atol=1e-6), name  # R is projected, which rounds
    save_checkpoint(tmp_path / "other.safetensors", relabelled(first.model), first.record)
    moved = train(
        replace(still, start_from=str(tmp_path / "other.safetensors")),
        tmp_path / "moved",
        progress=False,
        pictures=False,
    )
    untrained = build_model(replace(TINY, seed=1), load_data("digits"))
    assert torch.equal(moved.model.fc.weight, untrained.fc.weight)
    assert torch.allclose(moved.model.conv1.weight, first.model.conv1.weight, atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"start_from=.*first.* is another network .*bn1\.bias and \d+ more"):
        train(replace(still, branches=3), tmp_path / "third", progress=False, pictures=False)
    with pytest.raises(RepositoryError, match=r"no checkpoint at .*nowhere"):
        train(replace(still, start_from="nowhere"), tmp_path / "third", progress=False, pictures=False)


def test_a_run_that_goes_on_needs_its_start_no_more(tmp_path):
    train(TINY, tmp_path / "first", progress=False, pictures=False)
    recipe = replace(TINY, epochs=2, start_from=str(tmp_path / "first"))
    whole = train(recipe, tmp_path / "second", progress=False, pictures=False)
    shutil.rmtree(tmp_path / "first")
    newest = max((tmp_path / "second" / "resume").glob("step-*"))
    newest.unlink()
    again = train(recipe, tmp_path / "second", resume=True, progress=False, pictures=False)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def relabelled(model: nn.Module) -> nn.Module:
    """Return a copy of a network for three other classes."""
    other = deepcopy(model)
    other.reset_classifier(3)
    other.pretrained_cfg = {**other.pretrained_cfg, "num_classes": 3, "label_names": ["a", "b", "c"]}
    return other


@pytest.mark.parametrize("soft", [False, True])
def test_every_member_of_an_ensemble_learns_from_every_image(soft):
    logits = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 7, 0, 3])
    wanted = F.one_hot(targets, 10).float() * 0.7 + 0.03 if soft else targets
    objective = Objective(replace(TINY, label_smoothing=0.0), classes=10)
    one_by_one = torch.stack([F.cross_entropy(member, wanted) for member in logits]).mean()
    torch.testing.assert_close(objective.loss(logits.flatten(0, 1), wanted), one_by_one)


def test_epochs_without_evaluation_change_no_weight(tmp_path):
    recipe = replace(TINY, epochs=3, validation=0.2)
    (tmp_path / "rare").mkdir()
    (tmp_path / "rare" / "best.safetensors").write_bytes(b"of an earlier run")
    always = train(recipe, tmp_path / "always", progress=False, pictures=False)
    rare = train(replace(recipe, evaluate_every=2), tmp_path / "rare", progress=False, pictures=False)
    for value, wanted in zip(rare.model.parameters(), always.model.parameters(), strict=True):
        assert torch.equal(value, wanted)
    assert [r.test_error_percent for r in rare.history] == [
        None,
        always.history[1].test_error_percent,
        always.history[2].test_error_percent,  # the last one always
    ]
    assert read_history(tmp_path / "rare" / "history.csv")[0].validation_loss is None
    _, best = load_checkpoint(tmp_path / "rare" / "best.safetensors")
    assert best.epochs == min(always.history[1:], key=lambda r: r.validation_error_percent).epoch


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_passes_make_the_step_of_one(tmp_path, accumulate):
    whole = train(FREE_OF_STATISTICS, tmp_path / "whole", progress=False, pictures=False)
    parts = train(
        replace(FREE_OF_STATISTICS, accumulate=accumulate), tmp_path / "parts", progress=False, pictures=False
    )
    assert [r.step for r in parts.history] == [r.step for r in whole.history] == [4]
    for value, wanted in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0)
    assert parts.record.metrics == pytest.approx(whole.record.metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"accumulate": 3}, "multiple of 3"), ({"accumulate": 128, "mixup": 0.2}, "in pairs, and a pass has 1")],
)
def test_a_batch_that_cannot_be_shared_by_the_passes_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        train(replace(TINY, **options), tmp_path, progress=False, pictures=False)


def test_the_average_of_the_weights_is_what_is_saved_and_evaluated(tmp_path):
    recipe = replace(TINY, ema_decay=0.7)
    average = [p.detach().clone() for p in build_model(recipe, load_data("digits")).parameters()]
    order = {}

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                order.setdefault(id(parameter), parameter)
        steps.append([p.detach().clone() for p in order.values()])

    steps: list[list[torch.Tensor]] = []
    handle = register_optimizer_step_post_hook(note)
    try:
        result = train(recipe, tmp_path, progress=False, pictures=False)
    finally:
        handle.remove()
    saved, _ = load_checkpoint(tmp_path / "last.safetensors")
    # The optimizer's groups order parameters otherwise than the network: R apart.
    names = [name for name, _ in saved.named_parameters()]
    ordered = [n for n in names if not n.endswith("calibration")], [n for n in names if n.endswith("calibration")]
    start = dict(zip(names, average, strict=True))
    sides = ordered if steps[0][0].ndim != 3 else ordered[::-1]
    expected = {name: start[name].double() for side in sides for name in side}
    for weights in steps:
        for name, weight in zip(expected, weights, strict=True):
            expected[name] = 0.7 * expected[name] + 0.3 * weight.double()
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-5, rtol=1e-4, msg=name)
        if name.endswith("calibration"):
            torch.testing.assert_close(parameter.sum(0), torch.ones_like(parameter[0]))
    data = load_data("digits")
    images, targets = view_of(data.test, data).__getitems__(range(360))
    with torch.no_grad():
        loss = F.cross_entropy(saved(images), targets).item()
    assert result.record.metrics["test_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_mixed_images_have_mixed_classes(mixing):
    objective = Objective(replace(TINY, label_smoothing=0.1, **mixing), classes=10)
    np.random.seed(0)
    images, targets = torch.rand(8, 1, 8, 8), torch.arange(8)
    mixed, wanted = objective.mixed(images.clone(), targets)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(wanted.sum(1), torch.ones(8))
    logits = torch.randn(8, 10)
    by_hand = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective.loss(logits, wanted), by_hand)


def test_smoothed_labels_are_shared_with_all_classes():
    objective = Objective(replace(TINY, label_smoothing=0.2), classes=10)
    logits, targets = torch.randn(8, 10), torch.arange(8)
    shares = 0.8 * F.one_hot(targets, 10) + 0.02
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective.loss(logits, objective.mixed(logits, targets)[1]), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"auto_augment": "rand-m9-mstd0.5"},
        {"auto_augment": "original"},
        {"color_jitter": 0.4},
        {"random_erasing": 1.0},
        {"color_jitter": 0.4, "crop_scale": (0.5, 1.0), "crop_padding": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(8, 8), (20, 24)])
def test_timms_augmentations_depend_on_seed_epoch_and_image_only(tmp_path, options, size):
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / label / "0.png")
    data = load_data(f"folder:{tmp_path}", image_size=16)
    views = [view_of(data.train, data, replace(TINY, **options)) for _ in range(2)]
    assert isinstance(views[0], PictureView)
    views[0].__getitems__([1, 0])
    same = [view.__getitems__([0])[0] for view in views]
    assert torch.equal(*same)
    plain = view_of(data.train, data).__getitems__([0])[0]
    assert not torch.equal(same[0], plain)
    views[1].start_epoch(1)
    assert not all(torch.equal(views[1].__getitems__([i])[0], views[0].__getitems__([i])[0]) for i in (0, 1))


@pytest.mark.parametrize("policy", ["random", 3, "", "automatic"])
def test_an_unknown_policy_is_named(policy):
    with pytest.raises(ConfigurationError, match="auto_augment must be a policy of timm"):
        replace(TINY, auto_augment=policy)


def test_grey_images_are_augmented_too(tmp_path):
    train(replace(TINY, auto_augment="rand-m9-mstd0.5", random_erasing=0.5, iterations=2, epochs=None), tmp_path)


def test_synchronised_batch_norm_without_gpus_is_refused():
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    recipe = replace(TINY, sync_batchnorm=True)
    with pytest.raises(ConfigurationError, match="needs GPUs"):
        trained_form(recipe, build_model(recipe, load_data("digits")), accelerator)


def test_synchronised_batch_norm_is_the_same_function_with_the_same_parameters():
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    recipe = replace(TINY, sync_batchnorm=True)
    plain, model = (build_model(recipe, load_data("digits")) for _ in range(2))
    before = list(map(id, model.parameters()))
    synchronised = trained_form(recipe, model, accelerator)
    # The stem, two in each of four blocks, three in shortcuts.
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in synchronised.modules()) == 1 + 2 * 4 + 3
    assert list(map(id, synchronised.parameters())) == before
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(synchronised.eval()(images), plain.eval()(images))
    plain.load_state_dict(synchronised.state_dict())


@pytest.mark.slow
def test_a_compiled_network_trains_as_it_is(tmp_path):
    recipe = replace(TINY, iterations=3, epochs=None, lr=0.01, noise_std=0.0)
    plain = train(recipe, tmp_path / "plain", progress=False, pictures=False)
    compiled = train(replace(recipe, compile=True), tmp_path / "compiled", progress=False, pictures=False)
    for value, wanted in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-3)
    load_checkpoint(tmp_path / "compiled" / "last.safetensors")


def test_compiling_and_passes_by_branches_exclude_each_other():
    with pytest.raises(ConfigurationError, match="compile and branches_at_once"):
        replace(TINY, compile=True, branches_at_once=2)


def test_tensorboard_shows_the_history(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = replace(TINY, epochs=2)
    result = train(recipe, tmp_path, progress=False, pictures=False, tensorboard=True)
    train(recipe, tmp_path, resume=True, progress=False, pictures=False, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "test_error_percent", "lr"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(r.step, pytest.approx(getattr(r, name), rel=1e-6)) for r in result.history]


def test_missing_tensorboard_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigurationError, match=r'pip install "ccnn-zoo\[tensorboard\]"'):
        train(TINY, tmp_path / "run", progress=False, pictures=False, tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_data_sets_of_the_library_datasets_are_read(tmp_path):
    pytest.importorskip("datasets")
    for split, count in (("train", 3), ("test", 2)):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (9, 7), 100 * number + i).save(tmp_path / split / label / f"{i}.png")
    data = load_data(f"hfds/{tmp_path}", image_size=8)
    assert (data.labels, len(data.train), len(data.test), data.input_size) == (("cat", "dog"), 6, 4, (3, 8, 8))
    assert sorted((picture.getpixel((0, 0)), target) for picture, target in data.test) == [
        ((100 * n + i,) * 3, n) for n in (0, 1) for i in (0, 1)
    ]
    rest, held_out = data.hold_out(1 / 3, seed=0)
    assert sorted(target for _, target in held_out) == [0, 1]
    assert len(rest.train) == 4


def test_missing_datasets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(ConfigurationError, match=r'package datasets .*"ccnn-zoo\[hfds\]"'):
        load_data("hfds/cifar10")
