"""Contract of ccnn_zoo.checkpoint: what is saved comes back to the bit, and a file is whole or refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import ccnn_zoo
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

RECORD = TrainingRecord(
    data="scikit-learn digits",
    seed=3,
    epochs=2,
    recipe={"lr": 0.1, "decay_at": [0.5]},
    metrics={"test_error_percent": 2.5},
    versions={"ccnn-zoo": "0.1.0"},
)


def network(seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    given = {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4), "num_classes": 10, **kwargs}
    model = timm.create_model("ccnn_resnet18_cifar", **given)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model.eval()


def test_options_of_earlier_versions_are_read_where_they_changed_nothing(tmp_path):
    model = network(branches=2)
    model._model_args |= {"input_scale": "none", "scaled_layers": "all"}
    save_checkpoint(tmp_path / "old.safetensors", model, RECORD)
    loaded, _ = load_checkpoint(tmp_path / "old.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ConfigurationError, match="input_scale must be one of 'none', got 'signs'"):
        network(branches=2, input_scale="signs")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, network(), RECORD)
    return path


@pytest.mark.parametrize(
    "kwargs",
    [
        {"branches": 1},
        {"branches": 8},
        {"branches": 3, "merge": "concat"},
        {"branches": 2, "merge": "max", "in_chans": 1, "num_classes": 7},
        {"channels": (16, 16, 32, 64)},
    ],
    ids=str,
)
def test_weights_statistics_and_record_come_back_to_the_bit(tmp_path, kwargs):
    model = network(**kwargs)
    save_checkpoint(tmp_path / "a.safetensors", model, RECORD)
    torch.manual_seed(99)
    loaded, record = load_checkpoint(tmp_path / "a.safetensors")
    assert record == RECORD
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    images = torch.rand(2, kwargs.get("in_chans", 3), 8, 8)
    assert torch.equal(loaded(images), model(images))


def test_class_names_and_preprocessing_come_back(tmp_path):
    cfg = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.2,), "num_classes": 2, "label_names": ["no", "yes"]}
    model = network(num_classes=2, in_chans=1, pretrained_cfg_overlay=cfg)
    save_checkpoint(tmp_path / "a.safetensors", model, RECORD)
    loaded = load_checkpoint(tmp_path / "a.safetensors")[0].pretrained_cfg
    assert {name: loaded[name] for name in cfg} == {name: pytest.approx(value) for name, value in cfg.items()}


def test_a_folded_network_loads_as_a_folded_one(tmp_path):
    folded = ccnn_zoo.fold(network(branches=4))
    save_checkpoint(tmp_path / "a.safetensors", folded, RECORD)
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert not any(isinstance(module, ccnn_zoo.CalibratedConv2d) for module in loaded.modules())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(images), folded(images))


def test_training_goes_on_from_a_loaded_network(saved):
    model, _ = load_checkpoint(saved)
    optimizer = ccnn_zoo.CSGD(model, lr=0.1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(torch.rand(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    for name in ("conv1.weight", "conv1.calibration", "fc.weight"):
        assert not torch.equal(after[name], before[name])
    for name, value in after.items():
        if name.endswith("calibration"):
            torch.testing.assert_close(value.sum(0), torch.ones_like(value[0]))


def test_no_pickle_is_in_the_file(saved):
    header_size = int.from_bytes(saved.read_bytes()[:8], "little")
    header = json.loads(saved.read_bytes()[8 : 8 + header_size])
    assert header["__metadata__"].keys() == {"format", "config", "record", "sha256"}
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + header_size + max(ends) == saved.stat().st_size


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RepositoryError, match=r"absent\.safetensors"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(RepositoryError, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_every_truncation_is_recognised(saved):
    content = saved.read_bytes()
    lengths = random.Random(0).sample(range(len(content)), 60)
    for length in [0, 1, 7, 8, 9, len(content) - 1, *lengths]:
        saved.write_bytes(content[:length])
        with pytest.raises(IntegrityError, match=r"last\.safetensors"):
            load_checkpoint(saved)


def test_every_flipped_bit_is_recognised(saved):
    content = saved.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    header = generator.sample(range(8, header_end), 150)
    weights = generator.sample(range(header_end, len(content)), 50)
    for position in [0, 1, 7, *header, *weights, len(content) - 1]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"last\.safetensors"):
            load_checkpoint(saved)


def test_appended_bytes_are_recognised(saved):
    saved.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(IntegrityError):
        load_checkpoint(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{}", "record": "{}", "sha256": "0"}])
def test_a_safetensors_file_of_others_is_refused(tmp_path, metadata):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(IntegrityError, match="not a ccnn-zoo checkpoint"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_picture_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_record_of_another_version_is_named_with_that_version(tmp_path, monkeypatch):
    record = TrainingRecord(data="x", seed=0, epochs=1, versions={"ccnn-zoo": "7.0"})
    monkeypatch.setattr("ccnn_zoo.checkpoint.asdict", lambda _: {**vars(record), "hyperdrive": 1})
    save_checkpoint(tmp_path / "a.safetensors", network(), record)
    with pytest.raises(IntegrityError, match=r"hyperdrive.*ccnn-zoo 7\.0"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "last.safetensors", network(), RECORD)


class Writer:
    """The process ``checkpoint_writer.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("checkpoint_writer.py"))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, action: str, folder: Path, *arguments: int) -> int:
        """Return the exit status of the child that does ``action`` in ``folder``; below 0 is a signal."""
        self._process.stdin.write(json.dumps([action, str(folder), *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    if os.name != "posix":
        pytest.skip("signals, limits and users are those of POSIX")
    process = Writer()
    yield process
    process.stop()


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(saved, writer):
    outcomes = []
    moment = 0
    while True:
        moment += 1
        save_checkpoint(saved, network(), RECORD)
        status = writer.run("be_killed_at", saved.parent, moment)
        _, record = load_checkpoint(saved)
        assert record.seed in (RECORD.seed, 1)
        leftovers = list(saved.parent.glob(".last-*"))
        outcomes.append((record.seed, len(leftovers)))
        for leftover in leftovers:
            leftover.unlink()
        if status == 0:
            break
        assert status == -signal.SIGKILL
    # It was killed before, during and after the write; in the end it was left alone.
    assert {(RECORD.seed, 0), (RECORD.seed, 1), (1, 0)} <= set(outcomes)
    assert outcomes[-1] == (1, 0)


@pytest.mark.parametrize("size", [1, 4096, 60_000, 200_000])
def test_a_writer_killed_in_the_middle_of_the_file_leaves_the_checkpoint(saved, writer, size):
    before = saved.read_bytes()
    assert writer.run("be_killed_after_bytes", saved.parent, size) == -signal.SIGXFSZ
    assert saved.read_bytes() == before


@pytest.mark.parametrize("size", [0, 4096, 200_000])
def test_a_full_disk_keeps_the_checkpoint_and_leaves_nothing_beside_it(saved, writer, size):
    before = saved.read_bytes()
    assert writer.run("fill_the_disk", saved.parent, size) == 0
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_without_write_permission_keeps_the_checkpoint(saved, writer):
    before = saved.read_bytes()
    status = writer.run("lack_permission", saved.parent)
    saved.parent.chmod(0o755)
    assert status == 0
    assert saved.read_bytes() == before
