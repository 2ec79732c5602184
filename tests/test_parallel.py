"""Contract of training by several processes: the same algorithm as by one, and no rank outlives another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from training_server import TrainingServer, serving

from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.train import Recipe
from ccnn_zoo.train._state import load_state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the server forks")

# Nothing in it depends on which images share a batch: no normalisation, no dropout.
FREE_OF_STATISTICS = Recipe(
    model="ccnn_nin",
    model_kwargs={"drop_rate": 0.0},
    branches=2,
    data="digits",
    iterations=6,
    batch_size=32,
    lr=0.01,
    noise_std=1e-2,
    crop_padding=1,
    save_every=2,
)
LONG = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    branches=2,
    data="digits",
    epochs=10_000,
)


@pytest.fixture(scope="module")
def server() -> Iterator[TrainingServer]:
    with serving() as process:
        yield process


@pytest.fixture(scope="module")
def together(server, tmp_path_factory) -> Path:
    """Folder of a run by two processes."""
    folder = tmp_path_factory.mktemp("together")
    FREE_OF_STATISTICS.to_yaml(folder / "recipe.yaml")
    assert server.train(folder / "recipe.yaml", folder, processes=2) == [0, 0]
    return folder


def states_of(folder: Path) -> list[Path]:
    return sorted((folder / "resume").iterdir())


def test_two_processes_with_half_the_batch_each_take_the_steps_of_one(server, together, tmp_path):
    assert server.train(together / "recipe.yaml", tmp_path) == [0]
    (model, record), (expected, expected_record) = (
        load_checkpoint(folder / "last.safetensors") for folder in (together, tmp_path)
    )
    for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        # Other noise would differ by 1e-2.
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert record.metrics == pytest.approx(expected_record.metrics, abs=1e-5)
    noise, wanted = (load_state(states_of(folder)[-1]).parts["optimizer"]["noise"] for folder in (together, tmp_path))
    assert noise["generators"].keys() == wanted["generators"].keys() == {"cpu"}
    assert torch.equal(noise["generators"]["cpu"], wanted["generators"]["cpu"])


def test_weights_and_calibration_kernels_are_the_same_on_all_ranks_after_every_step(together):
    one, other = (safetensors.torch.load_file(together / f"rank{rank}.trace") for rank in (0, 1))
    parameters = len(list(load_checkpoint(together / "last.safetensors")[0].parameters()))
    assert len(one) == len(other) == 6 * parameters
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_rank_dies_the_other_ends_with_an_error(server, tmp_path, rank):
    LONG.to_yaml(tmp_path / "recipe.yaml")
    kill = (rank, signal.SIGKILL, 0.5)
    statuses = server.train(tmp_path / "recipe.yaml", tmp_path, processes=2, signalled=kill)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 1


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(server, tmp_path, rank):
    LONG.to_yaml(tmp_path / "recipe.yaml")
    stop = (rank, signal.SIGTERM, 0.5)
    statuses = server.train(tmp_path / "recipe.yaml", tmp_path, processes=2, signalled=stop)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert load_state(states_of(tmp_path)[-1]).step > 0


def test_two_processes_resume_together(server, together, tmp_path):
    (tmp_path / "resume").mkdir()
    halfway = states_of(together)[0]
    (tmp_path / "resume" / halfway.name).write_bytes(halfway.read_bytes())
    assert load_state(halfway).step == 4
    assert server.train(together / "recipe.yaml", tmp_path, processes=2) == [0, 0]
    model, expected = (load_checkpoint(folder / "last.safetensors")[0] for folder in (tmp_path, together))
    for value, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0)


LAUNCHED = """
import os, signal
from torch.optim.optimizer import register_optimizer_step_post_hook
from ccnn_zoo.train import Recipe, train

recipe = Recipe.from_yaml("recipe.yaml")
result = train(recipe, "run")
print(f"loss {result.record.metrics['train_loss']!r}", flush=True)
if os.environ["RANK"] == "1":
    register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
train(recipe, "run")
print("survived", flush=True)
"""


def test_torchrun_trains_and_ends_with_an_error_when_a_rank_dies(together, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes((together / "recipe.yaml").read_bytes())
    (tmp_path / "job.py").write_text(LAUNCHED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "job.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    loss = load_checkpoint(together / "last.safetensors")[1].metrics["train_loss"]
    assert done.stdout.splitlines() == [f"loss {loss!r}"] * 2, done.stderr
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr  # torchrun names the rank that died first
    assert done.stderr.count("K=2 1/1:") == 1  # only the first process reports and writes
