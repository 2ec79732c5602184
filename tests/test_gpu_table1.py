"""Contract of scripts/gpu_table1.py, on a CPU: the trainer's training, several at a time, and an honest page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, evaluation_batches, load_data, train
from ccnn_zoo.train._state import StateFolder

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import gpu_table1  # noqa: E402, found through the line before
from experiments._side_by_side import DeviceImages, Network, Way, learning_rates, step_seconds, train_epoch  # noqa: E402
from experiments.table1 import PAPER  # noqa: E402

STEPS = 6  # of 4 an epoch


def recipe(**changes: object) -> Recipe:
    values = {
        "model": "ccnn_resnet18_cifar",
        "model_kwargs": {"layers": [1, 1, 1], "channels": [8, 8, 16]},
        "data": "digits",
        "iterations": STEPS,
        "branches": 2,
        "validation": 0.2,
        "batch_size": 256,
        "crop_padding": 1,
        "flip": 0.5,
        "scheduler": "multistep",
        "weight_decay": 1e-2,
        "calibration_lr": 1.0,
        "noise_std": 1e-2,
        "seed": 3,
    }
    return Recipe.from_mapping({**values, **changes})


@cache
def digits(device: str = "cpu") -> DeviceImages:
    return DeviceImages(load_data("digits"), recipe().crop_padding, torch.device(device))


def network(wanted: Recipe, way: Way = Way(), device: str = "cpu") -> Network:  # noqa: B008, it cannot change
    return Network(wanted, digits(device), learning_rates(wanted), way)


def run(network: Network) -> Network:
    while network.left:
        train_epoch([network])
    return network


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the trainer makes of the recipe."""
    return train(recipe(), tmp_path_factory.mktemp("trained"), progress=False, pictures=False)


@pytest.mark.parametrize("way", [Way(), Way(apart=True), Way(channels_last=True)], ids=lambda way: way.name)
def test_steps_are_the_trainers(way, trained, tmp_path):
    if way.channels_last:  # another noise, which is laid out as the weights are
        trained = train(recipe(channels_last=True), tmp_path, progress=False, pictures=False)
    ours, data = run(network(recipe(), way)), load_data("digits")
    assert ours.done == STEPS
    assert_same(ours.model.state_dict(), trained.model.state_dict())
    for part, examples in (("test", data.test), ("validation", data.hold_out(0.2, ours.recipe.seed)[1])):
        logs, targets = ours.log_probabilities(part)
        batches = [*evaluation_batches(replace(data, test=examples))]
        assert targets.tolist() == torch.cat([targets for _, targets in batches]).tolist()
        with torch.no_grad():
            wanted = torch.cat([trained.model(images) for images, _ in batches]).log_softmax(1)
        torch.testing.assert_close(torch.from_numpy(logs), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.0}, {"momentum": 0.8}, {"noise_std": 0.0}, {"calibration_lr": 0.0}, {"flip": 0.0}]
)
def test_each_term_of_a_step_would_be_missed(change, trained):
    ours = run(network(recipe(**change)))
    with pytest.raises(AssertionError):
        assert_same(ours.model.state_dict(), trained.model.state_dict())


def test_networks_side_by_side_do_not_touch_each_other(trained):
    networks = [network(recipe(seed=seed, branches=k)) for seed, k in [(3, 2), (4, 2), (3, 1)]]
    while networks[0].left:
        train_epoch(networks)
    assert_same(networks[0].model.state_dict(), trained.model.state_dict())
    assert all(n.done == STEPS and n.seconds > 0 for n in networks)


def test_learning_rates_fall_at_half_and_three_quarters():
    rates = learning_rates(Recipe.load("cifar10_table1"))
    assert len(rates) == 64_000
    changes = {step: rate for step, rate in enumerate(rates.tolist()) if not step or rate != rates[step - 1].item()}
    assert changes == {0: pytest.approx(0.1), 32_000: pytest.approx(0.01), 48_000: pytest.approx(0.001)}


def test_measuring_leaves_a_training_where_it_is():
    wanted = recipe(noise_std=0.0)
    measured, other = network(wanted), network(wanted)
    while measured.left:
        assert step_seconds([measured], 5) > 0
        train_epoch([measured])
    for name, tensor in run(other).model.state_dict().items():
        assert torch.equal(measured.model.state_dict()[name], tensor), name


def test_a_resumed_training_ends_as_one_that_was_never_stopped(tmp_path):
    whole, first, second = (network(recipe()) for _ in range(3))
    train_epoch([first])
    first.save(StateFolder(tmp_path, 1))
    second.resume(StateFolder(tmp_path, 1))
    assert (second.done, second.seconds, second.loss) == (first.done, first.seconds, first.loss)
    assert 0 < second.left < STEPS
    for name, tensor in run(whole).model.state_dict().items():
        assert torch.equal(run(second).model.state_dict()[name], tensor), name


def test_a_step_reads_nothing_back_to_the_host_and_mixes_no_devices(monkeypatch):
    # Tensors without values, on another device than the CPU: whatever asks for one fails, as a capture would.
    for way in (Way(), Way(apart=True), Way(channels_last=True)):
        ours = network(recipe(), way, "meta")
        stepped = []
        monkeypatch.setattr(ours.optimizer, "step", lambda stepped=stepped: stepped.append(True))
        ours.take()
        assert stepped
        assert all(p.grad is not None and p.grad.device.type == "meta" for p in ours.model.parameters())


def test_recipes_of_which_something_would_be_left_out_are_refused():
    for change in ({"mixup": 0.2}, {"accumulate": 2}, {"objective": "branches"}, {"color_jitter": 0.1}):
        with pytest.raises(ConfigurationError, match="side by side"):
            network(recipe(**change))


class Clock:
    """Time that stands still until it is told to pass."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def arguments(folder: Path, **changes: object) -> list[str]:
    wanted = recipe(noise_std=0.0, **changes)
    wanted.to_yaml(folder / "recipe.yaml")
    out = ["--out", str(folder / "out"), "--waves", "1,2", "--seeds", "2", "--measure", "1", "--device", "cpu"]
    return ["--data", "digits", "--recipe", str(folder / "recipe.yaml"), *out]


def test_the_page_says_what_the_trainer_measures_even_if_it_took_several_calls(tmp_path, monkeypatch):
    calls, out = arguments(tmp_path), tmp_path / "out"
    clock = Clock()

    def train_until_the_time_is_up(networks: list[Network]) -> None:
        train_epoch(networks)
        clock.now += 3600

    with monkeypatch.context() as patched:
        patched.setattr(gpu_table1, "time", clock)
        patched.setattr(gpu_table1, "step_seconds", lambda networks, steps: 1e6)
        patched.setattr(gpu_table1, "train_epoch", train_until_the_time_is_up)
        gpu_table1.main(calls)
    page = (out / "table1_gpu.md").read_text(encoding="utf-8")
    assert f"K = 1 seed 0: 4 of {STEPS} iterations when this was written" in page
    assert json.loads((out / "table1_gpu.json").read_text(encoding="utf-8")) == []

    begun = []
    with monkeypatch.context() as patched:
        patched.setattr(gpu_table1, "train_epoch", lambda ns: (begun.append([n.done for n in ns]), train_epoch(ns)))
        gpu_table1.main(calls)
    assert begun[0] == [4, 4, 0, 0], "the first call's trainings go on"
    page, records = (out / "table1_gpu.md").read_text(encoding="utf-8"), (out / "table1_gpu.json").read_bytes()
    assert "Not the paper's experiment" in page
    assert "Not finished" not in page
    assert not [*(out / "states").iterdir()], "states of what is finished are of no more use"
    errors = {}
    for record in json.loads(records):
        settings, measured = record["settings"], record["measured"]
        seed, k = settings["seed"], settings["branches"]
        assert measured["iterations"] == STEPS
        if seed == 0:
            wanted = recipe(noise_std=0.0, seed=seed, branches=k)
            (last,) = train(wanted, tmp_path / str(k), progress=False, pictures=False).history[-1:]
            assert measured["test"]["error_percent"] == pytest.approx(last.test_error_percent, abs=0.3)
            assert measured["validation"]["error_percent"] == pytest.approx(last.validation_error_percent, abs=0.4)
        errors.setdefault(k, []).append(measured["test"]["error_percent"])
    for k, values in errors.items():
        assert len(values) == 2
        row = next(line for line in page.splitlines() if line.startswith(f"| {k} |"))
        assert f"| {sum(values) / 2:.2f} ± " in row
        assert f"| {PAPER[1e-4, k]:.2f} |" in row

    for others in ([], ["--waves", "2", "--seeds", "1"]):
        gpu_table1.main([*calls, *others])
        assert (out / "table1_gpu.json").read_bytes() == records, "what is finished stays and is not trained again"


def test_as_many_networks_are_trained_as_will_come_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_table1, "step_seconds", lambda networks, steps: float(len(networks)))
    args = gpu_table1._parser().parse_args([*arguments(tmp_path), "--precision", "fp32"])
    args.begun = gpu_table1.time.monotonic()
    session = gpu_table1.Session(args)
    for seconds, count in ((7 * STEPS, 4), (3.5 * STEPS, 3), (2.5 * STEPS, 2), (1.5 * STEPS, 1), (0.5 * STEPS, 2)):
        session.end = gpu_table1.time.monotonic() + seconds
        assert session.next_cells() == session.waves[0][:count]


def test_a_training_that_diverged_is_told_and_not_left_out(tmp_path):
    gpu_table1.main([*arguments(tmp_path, lr=1e9), "--seeds", "1", "--waves", "2"])
    (record,) = json.loads((tmp_path / "out" / "table1_gpu.json").read_text(encoding="utf-8"))
    assert "before iteration 4" in record["measured"]["diverged"], "the epoch in which it diverged is its last"
    assert "diverged on 1 of 1 seeds" in (tmp_path / "out" / "table1_gpu.md").read_text(encoding="utf-8")
