"""Contract of scripts/reproduce.py: experiments of resumable cells, and tables that say what the cells measured."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file
from scipy.stats import ttest_rel
from sklearn.metrics import log_loss
from waiting import HANG_S, until

from ccnn_zoo import fold
from ccnn_zoo.train import build_model, load_data

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "reproduce.py"
sys.path.insert(0, str(SCRIPT.parent))

import experiments  # noqa: E402, found through the line before
from experiments import _others, ablation, table1, table2  # noqa: E402
from experiments._cells import find, finish, key_of  # noqa: E402
from experiments._plans import MissingDataError, make_plan  # noqa: E402
from experiments._scores import calibration_error, mean_prediction, scores  # noqa: E402
from experiments._statistics import Spread, difference, spread  # noqa: E402

pytestmark = pytest.mark.timeout(3600)  # all experiments

needs_others = pytest.mark.skipif(not _others.available(), reason=_others.MISSING)


def run(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the script; in a session of its own, so that its processes can be found."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finished_cells(place: Path) -> dict[str, int]:
    """Return the records of all finished cells with the moment at which each was written."""
    return {str(path): path.stat().st_mtime_ns for path in place.glob("*/record.json")}


EXPERIMENTS = {"few": ("table3", "figure2"), "all": experiments.NAMES}


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def quick(request, tmp_path_factory):
    """Experiments with --quick, killed when some cells are finished, and called again; once for all workers."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / request.param
    place.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        if not (place / "report.json").is_file():
            (place / "report.json").write_text(json.dumps(kill_and_repeat(place)))
    return place, *json.loads((place / "report.json").read_text()).values()


def kill_and_repeat(place: Path) -> dict[str, object]:
    """Return the records that were there before the second call, the processes left of the first, and its output."""
    seeds, finished = (1, 1) if place.name == "few" else (2, 3)
    arguments = (*EXPERIMENTS[place.name], "--quick", "--jobs", 2, "--seeds", seeds)
    arguments += ("--out", place / "out", "--cells", place / "cells")
    first = run(*arguments)
    until(lambda: len(finished_cells(place / "cells")) >= finished, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(workers, HANG_S)
    before = finished_cells(place / "cells")
    second = run(*arguments)
    output, _ = second.communicate()
    assert second.returncode == 0, output
    left = [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    return {"before": before, "left": left, "output": output}


def test_a_killed_call_leaves_no_process_behind(quick):
    _, _, left, _ = quick
    assert not left


def test_finished_cells_are_not_run_again(quick):
    place, before, _, output = quick
    after = finished_cells(place / "cells")
    assert {path: after[path] for path in before} == before
    assert re.search(rf"(\d+) cells, {len(before)} of them finished before", output)
    assert len(after) == int(re.search(r"(\d+) cells", output)[1])


def test_every_experiment_writes_its_page_and_its_records(quick):
    place, *_ = quick
    for name in EXPERIMENTS[place.name]:
        page = (place / "out" / f"{name}_quick_digits.md").read_text(encoding="utf-8")
        assert "Not the paper's experiment" in page
        assert "not run" not in page.replace("CIFAR-100 was not run", "") or name in ("table2", "ablation")
        for picture in re.findall(r"\]\((.+?\.png)\)", page):
            with Image.open(place / "out" / picture) as image:
                assert image.size == (840, 540)
                assert len(image.convert("RGB").getcolors(100_000)) > 50
        for record in json.loads((place / "out" / f"{name}_quick_digits.json").read_text(encoding="utf-8")):
            assert "diverged" in record["measured"] or record["measured"]["seconds"] > 0


def test_records_hold_what_the_predictions_say(quick):
    place, *_ = quick
    paths = [*place.glob("cells/*-k4-*/record.json")][:4]
    assert paths
    for path in paths:
        measured = json.loads(path.read_text(encoding="utf-8"))["measured"]
        saved = load_file(path.parent / "predictions.safetensors")
        for part in ("test", "validation"):
            logs, targets = saved[f"{part}/log_probabilities"].astype(np.float64), saved[f"{part}/targets"]
            wrong = 100 * np.mean(logs.argmax(1) != targets)
            # Equal logits of two classes count as wrong, and argmax may find the right one.
            assert measured[part]["error_percent"] == pytest.approx(wrong, abs=0.3)
            probabilities = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
            assert measured[part]["nll"] == pytest.approx(log_loss(targets, probabilities, labels=range(10)), abs=1e-5)
        history = (path.parent / "history.csv").read_text(encoding="utf-8").splitlines()
        last = dict(zip(history[0].split(","), history[-1].split(","), strict=True))
        assert measured["test"]["error_percent"] == pytest.approx(float(last["test_error_percent"]), abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("quick", ["all"], indirect=True)
def test_table_1_holds_mean_and_deviation_of_its_records(quick):
    place, *_ = quick
    page = (place / "out" / "table1_quick_digits.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:6] for line in page.splitlines() if line.startswith("| s")}
    records = json.loads((place / "out" / "table1_quick_digits.json").read_text(encoding="utf-8"))
    for sigma in (0.0, 1e-3, 1e-4):
        for column, branches in enumerate((1, 2, 4, 8)):
            errors = [
                record["measured"]["test"]["error_percent"]
                for record in records
                if (record["settings"]["noise_std"], record["settings"]["branches"]) == (sigma, branches)
                and record["settings"]["noise"] == "weight"
            ]
            assert len(errors) == 2
            wanted = f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} ({table1.PAPER[sigma, branches]:.2f})"
            assert rows[f"sigma = {sigma:g}"][column].strip() == wanted


@pytest.mark.slow
@pytest.mark.parametrize("quick", ["all"], indirect=True)
def test_an_ensemble_is_scored_by_its_mean_probability(quick):
    place, *_ = quick
    plan = make_plan("quick", None, 2, place / "cells")
    row = next(row for row in ablation.rows(plan) if len(row.cells) > 1)
    members = [find(replace(c, recipe=replace(c.recipe, seed=1)), place / "cells") for c in row.cells]
    saved = [load_file(member.folder / "predictions.safetensors") for member in members]
    mean = np.mean([np.exp(s["test/log_probabilities"].astype(np.float64)) for s in saved], axis=0)
    targets = saved[0]["test/targets"]
    page = json.dumps(ablation._together(members).measured["test"])
    assert json.loads(page)["nll"] == pytest.approx(-np.log(mean[np.arange(len(targets)), targets]).mean())
    assert ablation._together(members).measured["multiply_adds"] == 4 * members[0].measured["multiply_adds"]


def test_a_changed_setting_is_another_cell(tmp_path):
    plan = make_plan("quick", None, 1, tmp_path)
    cell = table1.training(plan, 4, 1e-4)
    key = key_of(cell.settings())
    changes = {"lr": 0.2, "seed": 1, "noise": "gradient", "merge": "max", "model_kwargs": {"layers": [1, 1, 2]}}
    others = [replace(cell, recipe=replace(cell.recipe, **{name: value})) for name, value in changes.items()]
    others += [replace(cell, network="batch_ensemble"), cell.as_member(1)]
    assert len({key, *(key_of(other.settings()) for other in others)}) == len(others) + 1
    moved = [replace(cell, recipe=replace(cell.recipe, data=f"cifar10:{place}/cifar")) for place in ("/a", "/b")]
    same = replace(cell, recipe=replace(cell.recipe, keep=5))
    assert key_of(same.settings()) == key
    assert key_of(moved[0].settings()) == key_of(moved[1].settings()) != key


ONE_CELL = """
import os, signal, sys
import torch
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from experiments import table1
from experiments._cells import finish
from experiments._plans import make_plan

torch.set_num_threads(1)
place = Path(sys.argv[1])

def die(*_):
    if [*place.glob("*/resume/step-*.safetensors")]:
        os.kill(os.getpid(), signal.SIGKILL)

register_optimizer_step_post_hook(die)
finish(table1.training(make_plan("quick", None, 1, place), 2, 1e-4), place)
"""


def test_an_interrupted_cell_goes_on_and_ends_as_if_nothing_had_happened(tmp_path):
    cell = table1.training(make_plan("quick", None, 1, tmp_path), 2, 1e-4)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    assert subprocess.run([sys.executable, "-c", ONE_CELL, str(killed)], env=environment).returncode == -signal.SIGKILL
    assert find(cell, killed) is None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # results are the same to the bit for the same number
    try:
        resumed, whole = finish(cell, killed), finish(cell, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert load_file(resumed.folder / "predictions.safetensors").keys()
    for part in ("test", "validation", "train"):
        assert resumed.measured[part] == whole.measured[part]


def test_scores_are_those_of_other_libraries():
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(500, 10))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.where(generator.random(500) < 0.6, logits.argmax(1), generator.integers(10, size=500))
    found = scores(logs, targets)
    assert found["error_percent"] == pytest.approx(100 * np.mean(logits.argmax(1) != targets))
    assert found["nll"] == pytest.approx(log_loss(targets, np.exp(logs), labels=range(10)))
    best = np.argsort(-logits, axis=1)[:, :5]
    assert found["top5_error_percent"] == pytest.approx(100 * np.mean([t not in b for t, b in zip(targets, best)]))  # noqa: B905
    metrics = pytest.importorskip("torchmetrics.functional.classification", reason=_others.MISSING)
    wanted = metrics.multiclass_calibration_error(
        torch.from_numpy(np.exp(logs)), torch.from_numpy(targets), num_classes=10, n_bins=15
    )
    assert found["ece_percent"] == pytest.approx(100 * float(wanted), abs=1e-4)


def test_calibration_error_of_a_case_worked_out_by_hand():
    # One bin three of four right and 0.15 too sure, the next one right and 0.05 too unsure, one 0.5 too unsure.
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.95, 0.95, 0.5, 0.5])
    correct = np.array([True, True, True, False, True, True, True, True])
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.15 + 2 * 0.05 + 2 * 0.5) / 8)


def test_a_network_that_gives_all_classes_the_same_is_always_wrong():
    found = scores(np.full((4, 10), np.log(0.1)), np.zeros(4, int))
    assert found["error_percent"] == 100
    assert mean_prediction([np.log([[0.2, 0.8]]), np.log([[0.6, 0.4]])]) == pytest.approx(np.log([[0.4, 0.6]]))


def test_differences_are_students_intervals_of_pairs():
    ours = Spread({0: 4.2, 1: 3.9, 2: 4.6, 5: 9.0})
    plain = Spread({0: 4.4, 1: 4.5, 2: 4.7, 7: 1.0})
    gap = difference(ours, plain)
    interval = ttest_rel([4.2, 3.9, 4.6], [4.4, 4.5, 4.7]).confidence_interval(0.95)
    assert (gap.value - gap.margin, gap.value + gap.margin) == pytest.approx((interval.low, interval.high))
    assert gap.verdict() == "within the spread"
    assert difference(Spread({0: 1.0, 1: 1.1, 2: 0.9}), Spread({0: 2.0, 1: 2.1, 2: 1.9})).verdict().startswith("lower")
    assert difference(Spread({0: 1.0}), Spread({1: 2.0})).verdict() == "nothing to compare"
    assert difference(Spread({0: 1.0, 1: 1.1}, diverged=(2,)), plain).verdict() == "nothing to compare"


def test_a_diverged_seed_is_told_and_not_left_out(tmp_path):
    plan = make_plan("quick", None, 1, tmp_path)
    cell = table1.training(plan, 1, 0.0)
    cell = replace(cell, recipe=replace(cell.recipe, lr=1e9, warmup=0.0))
    record = finish(cell, tmp_path)
    assert "loss became" in record.measured["diverged"]
    assert spread([record], "test", "error_percent").text() == "diverged on 1 of 1 seeds"


@needs_others
@pytest.mark.parametrize("name", ["batch_ensemble", "packed_ensemble"])
def test_members_are_the_networks_that_their_weights_make(tmp_path, name):
    plan = make_plan("quick", None, 1, tmp_path)
    cell = ablation.training(plan, name)
    data = load_data("digits")
    model = getattr(_others, name)(cell.recipe, data).eval()
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    members = [_member(model, cell, data, name, number) for number in range(4)]
    with torch.no_grad():
        alone = [member(images).log_softmax(1) for member in members]
        assert (alone[0] - alone[1]).abs().max() > 1e-3
        torch.testing.assert_close(model(images), torch.stack(alone).exp().mean(0).log(), atol=1e-5, rtol=1e-4)
        model.train()
        assert model(images).shape == (24, 10)


def _member(model, cell, data, name, number):
    """Return member ``number`` as a plain network: Packed-Ensembles are half as wide, their weights stand in a row."""
    recipe = replace(cell.recipe, branches=1)
    if name == "packed_ensemble":
        narrow = {**recipe.model_kwargs, "channels": [c // 2 for c in recipe.model_kwargs["channels"]]}
        recipe = replace(recipe, model_kwargs=narrow)
    plain = fold(build_model(recipe, data)).eval()
    with torch.no_grad():
        for place, module in plain.named_modules():
            own = model.get_submodule(place)
            if hasattr(own, "r_group"):
                inner = own.conv if hasattr(own, "conv") else own.linear
                scale = own.s_group[number][:, None] * own.r_group[number][None]
                module.weight.copy_(inner.weight * scale.reshape(*scale.shape, *[1] * (inner.weight.dim() - 2)))
                if own.bias is not None:
                    module.bias.copy_(own.bias[number])
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(own.conv.weight.chunk(4)[number])
            elif isinstance(module, torch.nn.Linear):
                module.weight.copy_(own.weight[number])
                module.bias.copy_(own.bias.chunk(4)[number])
    return plain


def test_without_the_library_its_rows_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_others, "find_spec", lambda name: None)
    plan = make_plan("quick", None, 1, tmp_path)
    missing = [row for row in ablation.rows(plan) if row.missing]
    assert [row.label.split(",")[0] for row in missing] == ["BatchEnsemble", "Packed-Ensembles"]
    assert not [cell for cell in ablation.cells(plan) if cell.network != "ours"]


def test_table_2_counts_what_the_wide_resnet_paper_prints():
    rows = {row.method: row for row in table2.ROWS}
    assert round(table2.counts(rows["WRN-40"], "grouped")[0] / 1e6, 1) == 8.9
    assert round(table2.counts(rows["WRN-28"], "grouped")[0] / 1e6, 1) == 36.5
    shared, deployed = table2.counts(rows["CCNNs2-40"], "grouped")
    assert 1.99 < deployed / shared < 2


def test_plain_networks_of_table_2_train_without_noise(tmp_path):
    cells = table2.cells(replace(make_plan("full", None, 1, tmp_path), data="cifar10:/x"))
    assert {(cell.recipe.branches > 1, cell.recipe.noise_std) for cell in cells} == {(False, 0.0), (True, 1e-4)}


def test_the_full_recipe_asks_for_the_papers_data(tmp_path):
    plan = make_plan("full", None, 1, tmp_path)
    with pytest.raises(MissingDataError, match="table1 needs --data cifar10:FOLDER"):
        table1.cells(plan)
    cells = table1.cells(replace(plan, data="cifar10:/x"))
    assert len(cells) == 13
    assert {cell.recipe.iterations for cell in cells} == {64_000}
    assert {cell.recipe.validation for cell in cells} == {0.1}


def test_the_part_of_mnist_is_mnist_at_half_the_size(tmp_path, real_data):
    plan = make_plan("quick", f"mnist:{real_data}", 1, tmp_path)
    part, whole = load_data(plan.data), load_data(f"mnist:{real_data}")
    assert part.train.pixels.shape == (2500, 14, 14, 1)
    counts = torch.bincount(part.train.targets) / 2500 - torch.bincount(whole.train.targets) / 60_000
    assert counts.abs().max() < 1e-3
    quarters = whole.test.pixels[:, :, :, 0].numpy().reshape(-1, 14, 2, 14, 2).mean((2, 4))
    np.testing.assert_allclose(part.test.pixels[..., 0].numpy(), quarters, atol=0.51)
    assert torch.equal(part.test.targets, whole.test.targets)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("ablation*.md")), ids=lambda p: p.stem)
def test_the_published_ablation_holds_its_records(page):
    records = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    plain = [
        record["measured"]
        for record in records
        if (record["settings"]["branches"], record["settings"]["member"]) == (1, 0)
        and record["settings"]["model_kwargs"]["channels"] == [16, 16, 32, 64]
    ]
    row = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| plain |"))
    for column, (name, digits) in enumerate({"error_percent": 2, "nll": 3, "ece_percent": 2}.items()):
        values = [measured["test"][name] for measured in plain]
        wanted = f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
        assert row.split("|")[2 + column].strip() == wanted
