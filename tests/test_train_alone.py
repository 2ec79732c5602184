"""One training a folder: the second is refused, whatever it is started by, and a dead one is in nobody's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from detection_folders import voc_folder
from filelock import FileLock
from training_server import serving

from ccnn_zoo.train import Recipe, train
from ccnn_zoo.train._progress import TrainingProgress

TINY = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    branches=2,
    data="digits",
    iterations=3,
    batch_size=128,
    save_every=1,
)

ATTEMPTS = """
import json, sys
from ccnn_zoo.detection import train_detector
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, train

recipe, detection, output = sys.argv[1:]
cells = Recipe(
    model="ccnn_resnet18", branches=1, data=detection, epochs=1, batch_size=2, model_kwargs={"min_size": 64}
)
for attempt in (
    lambda: train(Recipe.from_yaml(recipe), output),
    lambda: train(Recipe.from_yaml(recipe), output, resume=True),
    lambda: train_detector(cells, output),
):
    try:
        attempt()
    except ConfigurationError as error:
        print(json.dumps(str(error)), flush=True)
"""


def test_a_second_training_of_any_kind_is_refused_by_folder_and_holder(tmp_path, monkeypatch):
    output, said = tmp_path / "run", []
    TINY.to_yaml(tmp_path / "tiny.yaml")
    detection = f"voc:{voc_folder(tmp_path / 'voc')}"

    def show_step(self: TrainingProgress, epoch: int, done: int, *_: float) -> None:
        if done == 1:  # another process comes while this one is training
            command = [sys.executable, "-c", ATTEMPTS, tmp_path / "tiny.yaml", detection, output]
            before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
            said.extend(map(json.loads, done.stdout.splitlines()))

    monkeypatch.setattr(TrainingProgress, "show_step", show_step)
    train(TINY, output, progress=False, pictures=False)
    assert len(said) == 3
    for error in said:
        assert error.startswith(f"process {os.getpid()} on ")
        assert f"is writing the training folder {output}. Wait for it" in error
    assert "training.lock" not in os.listdir(output)


@pytest.mark.skipif(os.name != "posix", reason="the server forks")
def test_all_ranks_of_a_second_training_end_and_what_a_dead_one_left_is_in_nobodys_way(tmp_path, capfd):
    TINY.to_yaml(tmp_path / "tiny.yaml")
    lock = tmp_path / "run" / "training.lock"
    lock.parent.mkdir()
    with serving() as server:
        with FileLock(lock):
            assert server.train(tmp_path / "tiny.yaml", tmp_path / "run", processes=2) == [1, 1]
        lock.write_text("process 1 on a machine that is gone")
        assert server.train(tmp_path / "tiny.yaml", tmp_path / "run", processes=2) == [0, 0]
    assert "is writing the training folder" in capfd.readouterr().err
    assert not lock.exists()
