"""Classifying on Ray Data, on a real local Ray."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pyarrow import parquet
from serve_network import METADATA, NUMBERS, encoded, probabilities_of, ray_folder, said_of, save_network
from waiting import until

from ccnn_zoo.errors import ConfigurationError

pytest.importorskip("ray", reason="the extra serve is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A network and pictures, the folder that relative paths start from."""
    save_network(tmp_path / "network.onnx")
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(encoded(colour))
    (tmp_path / "broken.png").write_bytes(encoded(COLOURS[0])[:40])
    monkeypatch.chdir(tmp_path)
    with ray_folder() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield tmp_path


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "MapBatches" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_results_are_whole_and_in_order_though_a_process_is_killed(folder):
    from ccnn_zoo.serve import RayClassifier

    classifier = RayClassifier("network.onnx", device="cpu", processes=2, threads=1, batch_size=16)
    paths = [Path("broken.png") if n % 50 == 7 else folder / f"{n % 4}.png" for n in range(6000)]
    results = classifier.classify_stream(iter(paths), top_k=2)
    first = next(results)
    held = workers()
    assert 1 <= len(held) <= 2, "one process for each session"
    held[0].kill()
    found = [first, *results]
    assert [result.source for result in found] == [os.fspath(path) for path in paths]
    for number, result in enumerate(found):
        if number % 50 == 7:
            assert result.predictions == ()
            assert "broken.png" in result.error
            continue
        expected = list(probabilities_of(COLOURS[number % 4]).items())[:2]
        assert [p.label for p in result.predictions] == [label for label, _ in expected]
        assert [p.probability for p in result.predictions] == pytest.approx([p for _, p in expected], rel=1e-5)
    until(lambda: not workers())  # Ray ends with the job


def test_the_command_line_writes_what_it_writes_without_ray(folder):
    ccnn = [Path(sys.executable).with_name("ccnn"), "classify", ".", "--model=network.onnx", "--device=cpu"]
    for name, options in (("plain.jsonl", []), ("ray.jsonl", ["--ray", "--processes=1"])):
        run = subprocess.run([*ccnn, f"--output={name}", *options], capture_output=True, text=True)
        assert run.returncode == 1, run.stderr
        assert "broken.png" in run.stderr
    plain, ray = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("plain.jsonl", "ray.jsonl")
    )
    assert len(plain) == len(COLOURS) + 1
    assert ray == plain


def test_sets_decisions_and_scores_come_from_ray_as_they_do_without(folder):
    from ccnn_zoo import runtime
    from ccnn_zoo.serve import RayClassifier

    network = save_network(folder / "sure.onnx", metadata=replace(METADATA, confidence=NUMBERS))
    paths = [*(folder / f"{n}.png" for n in range(4)), folder / "broken.png"]
    asked = {"top_k": 2, "coverage": 0.9, "max_risk": 0.05}
    classifier = RayClassifier(str(network), device="cpu", processes=1)
    with pytest.raises(ConfigurationError, match="coverage must be one of those that were fitted"):
        classifier.classify_stream([], coverage=0.8)
    assert list(classifier.classify_stream(paths, **asked)) == runtime.load(network, device="cpu").classify(
        paths, **asked
    )
    options = ["--coverage=0.9", "--max-risk=0.05", "--ray", "--processes=1", "--output=ray.parquet"]
    ccnn = [Path(sys.executable).with_name("ccnn"), "classify", ".", f"--model={network}", "--device=cpu"]
    run = subprocess.run([*ccnn, *options], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    rows = {Path(row["source"]).name: row for row in parquet.read_table(folder / "ray.parquet").to_pylist()}
    for number, colour in enumerate(COLOURS):
        row, expected = rows[f"{number}.png"], said_of(colour)
        assert json.loads(row["prediction_set"]) == expected["prediction_set"]
        assert (row["abstained"] is None) == expected["decided"]
        assert row["ood_percentile"] == expected["percentile"]
        assert row["entropy"] == pytest.approx(expected["entropy"], rel=1e-5)


def test_bad_arguments_are_named_before_ray_starts(folder):
    from ccnn_zoo.serve import RayClassifier

    with pytest.raises(ConfigurationError, match="processes must be an integer of at least 1, got 0"):
        RayClassifier("network.onnx", device="cpu", processes=0)
    with pytest.raises(ConfigurationError, match="top_k"):
        RayClassifier("network.onnx", device="cpu").classify_stream([], top_k=0)
