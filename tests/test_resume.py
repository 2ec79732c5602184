"""Contract of resumed training: however a run was stopped, it ends as if it had not been, to the bit."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from training_server import TrainingServer, serving

from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError, TrainingInterrupted
from ccnn_zoo.train import Recipe, TrainingResult, read_history, train
from ccnn_zoo.train._progress import TrainingProgress
from ccnn_zoo.train._state import load_state

TINY = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "drop_rate": 0.2},
    branches=3,
    data="digits",
    epochs=3,
    batch_size=128,
    validation=0.2,
    crop_padding=1,
    flip=0.1,
    warmup=0.2,
    save_every=3,
)
STEPS = 24  # 1,149 images are 8 whole batches

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits are those of POSIX")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainingResult:
    """A run that nothing interrupted."""
    return train(TINY, tmp_path_factory.mktemp("whole"), progress=False, pictures=False)


def stop_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Let the process get a signal during a step."""

    def show_step(self: TrainingProgress, epoch: int, done: int, *_: float) -> None:
        if done == step:
            signal.raise_signal(number)

    monkeypatch.setattr(TrainingProgress, "show_step", show_step)


def interrupted(recipe: Recipe, output: Path, monkeypatch, *steps: int, number: int = signal.SIGTERM) -> Path:
    """Leave in ``output`` a run that was stopped after each of ``steps`` and went on in between."""
    for step in steps:
        stop_at(monkeypatch, step, number)
        with pytest.raises(TrainingInterrupted, match=rf"after step {step} of {STEPS} .*--resume"):
            train(recipe, output, resume=True, progress=False, pictures=False)
    monkeypatch.undo()
    return output


def require_same(output: Path, expected: Path) -> None:
    """Compare all that a run leaves; only its speed may differ."""
    for name in ("last.safetensors", "best.safetensors"):
        assert sealed_texts(output / name) == sealed_texts(expected / name)
    states = [sorted((folder / "resume").iterdir()) for folder in (output, expected)]
    assert [path.name for path in states[0]] == [path.name for path in states[1]]
    one, other = (load_state(paths[-1]) for paths in states)
    assert (one.step, one.lr, one.sums) == (other.step, other.lr, other.sums)
    flat, flat_expected = (list(leaves(state.parts)) for state in (one, other))
    assert len(flat) == len(flat_expected) > 100
    for got, wanted in zip(flat, flat_expected, strict=True):
        assert torch.equal(got, wanted) if isinstance(got, torch.Tensor) else got == wanted
    assert untimed(output) == untimed(expected)


def sealed_texts(path: Path) -> dict[str, str]:
    """Return the texts of a file, among them the sum over its tensors; safetensors writes them in any order."""
    load_checkpoint(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def untimed(output: Path) -> list[dict[str, str]]:
    with (output / "history.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(stream)]


# Signals that can be caught


@posix
@pytest.mark.parametrize(
    "steps",
    [(8,), (3, 16, 17), (24,), *(pytest.param(steps, marks=pytest.mark.slow) for steps in ((1,), (7,), (9, 20)))],
    ids=str,
)
def test_a_run_stopped_after_any_step_ends_like_one_that_was_not(whole, tmp_path, monkeypatch, steps):
    output = interrupted(TINY, tmp_path, monkeypatch, *steps)
    result = train(TINY, output, resume=True, progress=False, pictures=False)
    require_same(output, whole.checkpoint.parent)
    assert result.record == whole.record
    assert [replace(r, images_per_second=0) for r in result.history] == [
        replace(r, images_per_second=0) for r in whole.history
    ]


@posix
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"channels_last": True}, marks=pytest.mark.slow),
        {"optimizer": "sgd"},
        pytest.param({"momentum": 0.0}, marks=pytest.mark.slow),
        pytest.param({"noise_std": 0.0}, marks=pytest.mark.slow),
        {"mixed_precision": "bf16", "ema_decay": 0.9, "accumulate": 2},
        {"mixup": 0.3, "color_jitter": 0.3, "noise": "gradient", "noise_decay": 0.55},
        {"epochs": None, "iterations": 13},
    ],
    ids=str,
)
def test_every_kind_of_training_resumes_to_the_bit(tmp_path, monkeypatch, options):
    recipe = replace(TINY, **{"epochs": 2, **options})
    train(recipe, tmp_path / "whole", progress=False, pictures=False)
    stop_at(monkeypatch, 10)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path / "stopped", progress=False, pictures=False)
    monkeypatch.undo()
    train(recipe, tmp_path / "stopped", resume=True, progress=False, pictures=False)
    require_same(tmp_path / "stopped", tmp_path / "whole")


@posix
def test_an_interrupt_says_where_it_stopped_and_is_no_exception_that_scripts_swallow(tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_at(monkeypatch, 5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped by SIGINT after step 5 of 24 \(epoch 1 of 3\)") as caught:
        train(TINY, tmp_path, progress=False, pictures=False)
    assert caught.value.signal == signal.SIGINT
    assert not isinstance(caught.value, Exception)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@posix
def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch):
    def show_step(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "show_step", show_step)
    # A shell's background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            train(TINY, tmp_path, progress=False, pictures=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not (tmp_path / "resume").exists()


# SIGKILL


@pytest.fixture(scope="module")
def server() -> Iterator[TrainingServer]:
    with serving() as process:
        yield process


@posix
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_like_one_that_was_not(tmp_path, server: TrainingServer, kills):
    TINY.to_yaml(tmp_path / "recipe.yaml")
    assert server.train(tmp_path / "recipe.yaml", tmp_path / "whole") == [0]
    moments = random.Random(kills)
    killed, run = 0, 0
    while killed < kills:
        kill = (0, signal.SIGKILL, moments.uniform(0, 0.6))
        (status,) = server.train(tmp_path / "recipe.yaml", tmp_path / str(run), signalled=kill)
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            run += 1
        else:
            killed += 1
    assert server.train(tmp_path / "recipe.yaml", tmp_path / str(run)) == [0]
    for number in range(run + 1):
        require_same(tmp_path / str(number), tmp_path / "whole")


# Damage


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@posix
@pytest.mark.parametrize("damage", [torn, flipped, emptied])
def test_of_a_damaged_state_the_one_before_is_used(whole, tmp_path, monkeypatch, damage):
    output = interrupted(TINY, tmp_path, monkeypatch, 17)
    older, newest = sorted((output / "resume").iterdir())
    assert (older.stem, newest.stem) == ("step-00000016", "step-00000017")
    damage(newest)
    with pytest.warns(RuntimeWarning, match=r"step-00000017\.safetensors.* The state before it is used"):
        train(TINY, output, resume=True, progress=False, pictures=False)
    require_same(output, whole.checkpoint.parent)


@posix
def test_where_all_states_are_damaged_nothing_is_trained(tmp_path, monkeypatch):
    output = interrupted(TINY, tmp_path, monkeypatch, 9)
    for path in (output / "resume").iterdir():
        torn(path)
    before = (output / "last.safetensors").read_bytes()
    with pytest.warns(RuntimeWarning), pytest.raises(IntegrityError, match=r"all 2 states .* damaged; train anew"):
        train(TINY, output, resume=True, progress=False, pictures=False)
    assert (output / "last.safetensors").read_bytes() == before


@contextmanager
def full_disk(size: int = 1000) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@posix
def test_a_full_disk_keeps_the_last_state_from_which_the_run_goes_on(whole, tmp_path, monkeypatch):
    output = interrupted(TINY, tmp_path, monkeypatch, 10)
    before = {path: path.read_bytes() for path in output.rglob("*.safetensors")}
    with full_disk(3000), pytest.raises(RepositoryError, match=r"cannot write .* free some space"):
        train(TINY, output, resume=True, progress=False, pictures=False)
    assert {path: path.read_bytes() for path in output.rglob("*.safetensors")} == before
    train(TINY, output, resume=True, progress=False, pictures=False)
    require_same(output, whole.checkpoint.parent)


# What resumes what


def test_without_a_state_a_run_begins(whole, tmp_path):
    train(TINY, tmp_path, resume=True, progress=False, pictures=False)
    require_same(tmp_path, whole.checkpoint.parent)


def test_a_finished_run_has_nothing_left_to_train(whole, tmp_path):
    output = shutil.copytree(whole.checkpoint.parent, tmp_path / "run")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.suffix in (".csv", ".safetensors")}
    result = train(TINY, output, resume=True, progress=False, pictures=False)
    assert (result.record, result.history) == (whole.record, whole.history)
    assert {path: path.read_bytes() for path in before} == before
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])


def test_another_recipes_state_is_refused_with_what_differs(whole, tmp_path):
    output = shutil.copytree(whole.checkpoint.parent, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"of a run with epochs=3, not 4, lr=0\.1, not 0\.2\. Resume"):
        train(replace(TINY, lr=0.2, epochs=4), output, resume=True, progress=False, pictures=False)


def test_values_that_decide_nothing_may_change(whole, tmp_path):
    output = shutil.copytree(whole.checkpoint.parent, tmp_path / "run")
    train(replace(TINY, workers=1, save_every=None, keep=5), output, resume=True, progress=False, pictures=False)


def test_a_run_that_begins_anew_removes_the_states_of_the_old_one_when_it_has_its_own(whole, tmp_path, monkeypatch):
    output = shutil.copytree(whole.checkpoint.parent, tmp_path / "run")
    anew = replace(TINY, seed=9, save_every=None)
    stop_at(monkeypatch, 2)
    with pytest.raises(TrainingInterrupted):
        train(anew, output, progress=False, pictures=False)
    assert [path.stem for path in (output / "resume").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_are_kept(tmp_path, keep):
    train(replace(TINY, epochs=1, keep=keep), tmp_path, progress=False, pictures=False)
    names = sorted(path.stem for path in (tmp_path / "resume").iterdir())
    assert names == ["step-00000003", "step-00000006", "step-00000008"][-keep:]


def test_the_best_network_is_the_one_with_the_lowest_error_on_held_out_images(tmp_path):
    result = train(replace(TINY, epochs=6, scheduler="constant", lr=0.5), tmp_path, progress=False, pictures=False)
    errors = [epoch.validation_error_percent for epoch in result.history]
    _, record = load_checkpoint(tmp_path / "best.safetensors")
    assert record.epochs == 1 + errors.index(min(errors))
    assert record.metrics["validation_error_percent"] == min(errors)
    assert len(read_history(tmp_path / "history.csv")) == 6


def test_without_held_out_images_no_network_is_called_the_best(whole, tmp_path):
    output = shutil.copytree(whole.checkpoint.parent, tmp_path / "run")
    train(replace(TINY, validation=0.0, epochs=1), output, progress=False, pictures=False)
    assert not (output / "best.safetensors").exists()
