"""Contract of `scripts/reproduce.py pays --medium`: what K branches buy, judged by figures of other libraries."""

from __future__ import annotations

import gzip
import json
import re
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import torch
from PIL import Image
from safetensors.numpy import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, ttest_rel
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from ccnn_zoo import fold
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.train import CHECKPOINT, build_model, load_data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from experiments import _others, pays  # noqa: E402, found through the line before
from experiments._cells import Records, finish, folder_of, key_of  # noqa: E402
from experiments._classification import BUILDERS  # noqa: E402
from experiments._doubt import Outputs  # noqa: E402
from experiments._plans import MissingDataError, make_plan  # noqa: E402
from experiments._rows import ROWS as ALL  # noqa: E402
from experiments._running import run_cells  # noqa: E402
from experiments._trial import OUTPUTS, Trial  # noqa: E402

RESULTS = ROOT / "docs" / "results"
ROWS = {row.label: row for row in ALL}
_LONGER = (", trained twice as long", ", trained twice as long, image and mirror image")

pytestmark = pytest.mark.skipif(not _others.available(), reason=_others.MISSING)


@pytest.fixture
def outputs():
    """Return what three branches, right more often than not, say of images of five classes, and of other images."""
    from experiments._doubt import Outputs

    generator = np.random.default_rng(0)

    def of(count: int, known: bool) -> Outputs:
        targets = generator.integers(0, 5, count)
        logits = generator.normal(0, 1.5, (3, count, 5)) + 3.0 * known * np.eye(5)[targets]
        alone = log_softmax(logits, axis=-1)
        joined = np.log(np.exp(alone).mean(0))
        return Outputs(*(torch.from_numpy(v) for v in (joined, alone, targets)))

    return of(400, True), of(600, True), {"noise": of(300, False)}


def test_figures_of_doubt_are_those_of_other_libraries(outputs):
    from experiments._doubt import doubt

    validation, test, elsewhere = outputs
    found = doubt(validation, test, elsewhere)
    logits, alone, targets = (v.numpy() for v in test)
    best = minimize_scalar(
        lambda t: log_loss(validation.targets, softmax(validation.log_probabilities.numpy() / t, axis=1)),
        bounds=(0.05, 20),
        method="bounded",
    ).x
    assert found["temperature"] == pytest.approx(best, rel=1e-2)
    assert found["nll_tempered"] == pytest.approx(log_loss(targets, softmax(logits / best, axis=1)), rel=1e-3)

    confidence, wrong = softmax(logits, axis=1).max(1), logits.argmax(1) != targets
    ranked = wrong[np.argsort(-confidence, kind="stable")]
    coverage = np.arange(1, len(ranked) + 1) / len(ranked)
    area = np.trapezoid(np.cumsum(ranked) / (coverage * len(ranked)), coverage)
    assert found["aurc_percent"] == pytest.approx(100 * area / (1 - coverage[0]), rel=1e-4)

    strange = softmax(elsewhere["noise"].log_probabilities.numpy(), axis=1).max(1)
    which = np.r_[np.zeros(len(confidence)), np.ones(len(strange))]
    assert found["auroc_percent"]["noise"] == pytest.approx(100 * roc_auc_score(which, -np.r_[confidence, strange]))
    assert found["auroc_percent"]["mean"] == found["auroc_percent"]["noise"]

    def information(branches):
        p = np.exp(branches.numpy())
        return entropy(p.mean(0), axis=-1) - entropy(p, axis=-1).mean(0)

    doubts = np.r_[information(test.branches), information(elsewhere["noise"].branches)]
    assert found["auroc_percent_mutual_information"]["noise"] == pytest.approx(
        100 * roc_auc_score(which, doubts), abs=0.01
    )
    said = alone.argmax(-1)
    pairs = list(permutations(range(3), 2))
    assert found["disagreement_percent"] == pytest.approx(
        100 * np.mean([said[a] != said[b] for a, b in pairs]), rel=1e-4
    )
    assert found["kl"] == pytest.approx(np.mean([entropy(*np.exp(alone[[a, b]]), axis=-1) for a, b in pairs]), rel=1e-4)
    errors = [(v.argmax(-1) != validation.targets.numpy()).mean() for v in validation.branches.numpy()]
    chosen = said[int(np.argmin(errors))]
    assert found["best_branch"]["error_percent"] == pytest.approx(100 * (chosen != targets).mean())


def test_an_ensemble_is_the_mean_of_the_probabilities(outputs):
    from experiments._doubt import mixed

    members = [outputs[0], outputs[0]._replace(log_probabilities=outputs[0].branches[0])]
    wanted = np.mean([softmax(m.log_probabilities.numpy(), axis=1) for m in members], axis=0)
    np.testing.assert_allclose(mixed(members).log_probabilities.exp(), wanted)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder of a few pictures in the layout of the data: CIFAR-10's, and those from elsewhere."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 10)):
        for name in "ab":
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number:03d}.png")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 4), ("t10k", 4)):
        sizes = np.array([count, 28, 28], ">u4").tobytes()
        pixels = generator.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes + pixels))
        labels = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for path in ("imagenet-sample/n0_cat.JPEG", "bccd/VOCdevkit/VOC2007/JPEGImages/0.jpg"):
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (50, 70, 3), np.uint8)).save(folder / path)
    return folder


@pytest.fixture(scope="module")
def plan(place, tmp_path_factory):
    """Return the plan, two steps long."""
    full = make_plan("medium", f"cifar10:{place}", 1, tmp_path_factory.mktemp("cells"), narrow=True)
    assert full.overrides["epochs"] == 30
    return replace(full, overrides={**full.overrides, "epochs": 1, "evaluate_every": 1, "batch_size": 50})


def test_pixels_are_means_of_four(place, plan):
    small, large = load_data(plan.data), load_data(f"cifar10:{place}")
    wanted = large.test.pixels.numpy().reshape(20, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(small.test.pixels.numpy() - wanted).max() <= 0.5
    assert torch.equal(small.train.targets, large.train.targets)


def test_rows_are_trained_scored_and_known_on_another_machine(plan, tmp_path):
    named = ("plain", "K=4, joint, average of the weights", "plain, taught by K=4, joint, average of the weights")
    chosen = [ROWS[name] for name in named]
    records = Records(finish(row.make(plan, 0), tmp_path) for row in chosen)
    plain, ours, student = (records[row.make(plan, 0)].measured for row in chosen)
    assert 3.9 < ours["multiply_adds"] / plain["multiply_adds"] < 4.1
    assert student["multiply_adds"] == plain["multiply_adds"]
    assert student["train"]["loss"] != plain["train"]["loss"]
    assert ours["doubt"]["kl"] > 0
    assert set(ours["doubt"]["auroc_percent"]) == {"digits", "photographs", "blood cells", "noise", "mean"}
    assert "kl" not in plain["doubt"]
    page = "\n".join(pays.report(plan, records).lines)
    for label in (row.label for row in chosen):
        assert f"| {label} |" in page
    # On a machine that has the documents only, nothing is trained again.
    again = run_cells([row.make(plan, 0) for row in chosen], tmp_path / "empty", 1, 1, known=records)
    assert again[chosen[1].make(plan, 0)].measured == ours
    assert not (tmp_path / "empty").exists()
    # Nor is what was recorded first replaced, where a training was needed again, on another processor for one.
    first = replace(records[chosen[0].make(plan, 0)], measured={"recorded": "first"})
    kept = run_cells([chosen[0].make(plan, 0)], tmp_path, 1, 1, known=Records([first]))
    assert kept[chosen[0].make(plan, 0)].measured == {"recorded": "first"}


def test_a_dense_network_is_measured_without_the_mean_of_its_kernels(plan, tmp_path):
    dense = finish(ROWS["K=2, joint, dense"].make(plan, 0), tmp_path).measured
    assert dense["doubt"]["best_branch"]
    assert "averaged_kernels" not in dense


def test_one_training_gives_the_network_with_and_without_the_average_of_its_weights(plan, tmp_path):
    cell = ROWS["K=2, joint"].make(plan, 0)
    both, alone = finish(cell, tmp_path / "both"), finish(Trial(cell.recipe, elsewhere=cell.elsewhere), tmp_path)
    assert both.settings == alone.settings
    of_time = ("seconds", "environment")
    assert {k: v for k, v in both.measured.items() if k not in of_time} == {
        k: v for k, v in alone.measured.items() if k not in of_time
    }
    average = finish(ROWS["K=2, joint, average of the weights"].make(plan, 0), tmp_path / "both")
    assert average.settings["ema_decay"] == cell.decay
    assert average.measured["test"]["nll"] != both.measured["test"]["nll"]
    assert average.measured["train"] == both.measured["train"]


def test_a_plain_network_is_shown_mirror_images_without_training_again(plan, tmp_path):
    how = ("", ", image and mirror image", ", image and mirror image, as a cascade")
    cells = [ROWS[f"plain{each}"].make(plan, 0) for each in how]
    assert len({key_of(cell.settings()) for cell in cells}) == 3
    plain, both = (finish(cell, tmp_path) for cell in cells[:2])
    assert {path.parent.name.partition("-seed")[0] for path in tmp_path.glob("*/last.safetensors")} == {
        "16-plain-average-of-the-weights"
    }
    alone, two = (load_file(record.folder / OUTPUTS) for record in (plain, both))
    branches = two["test/branches"].astype(np.float64)
    np.testing.assert_allclose(branches[0], alone["test/log_probabilities"], atol=1e-5)
    assert np.abs(branches[0] - branches[1]).max() > 1e-3
    np.testing.assert_allclose(log_softmax(branches.mean(0), axis=1), two["test/log_probabilities"], atol=1e-5)
    assert both.measured["seconds"] == pytest.approx(plain.measured["seconds"])
    assert both.measured["trained_parameters"] < 1.02 * plain.measured["trained_parameters"]
    assert both.measured["multiply_adds"] < 2.01 * plain.measured["multiply_adds"]


def test_a_training_that_diverges_is_a_result_of_both_its_networks(plan, tmp_path):
    cell = ROWS["plain"].make(plan, 0)
    cell = replace(cell, recipe=replace(cell.recipe, lr=1e30, warmup=0.0))
    assert "diverged" in finish(cell, tmp_path).measured


def test_each_row_has_the_seeds_that_its_question_needs(place, tmp_path):
    plan = make_plan("medium", f"cifar10:{place}", None, tmp_path, narrow=True)
    cells = pays.cells(plan)
    seeds = {row: [c.settings()["seed"] for c in cells if c.row == row] for row in (c.row for c in cells)}
    assert sorted(seeds["plain"]) == sorted(seeds["K=2, joint, one sees the mirror image"]) == [0, 1, 2, 3, 4]
    assert sorted(seeds["K=4, joint"]) == [0, 1, 2]
    assert seeds["K=8, joint"] == seeds["K=2, joint, R frozen"] == [0]
    assert max(seeds["plain"][:3]) == 2
    alike = ("K=2, branches, one sees the mirror image", "K=2, joint, random signs", "K=8, joint")
    others = [c.settings()["seed"] for c in cells if c.row in alike]
    assert others == sorted(others), "each of these has a figure before any has its second"
    whole = pays.cells(replace(plan, narrow=False))
    assert {c.row for c in whole} == {"plain", "K=2, joint"}
    assert not {key_of(c.settings()) for c in whole} & {key_of(c.settings()) for c in cells}


def test_a_cascade_asks_the_other_members_where_the_first_is_in_doubt(plan):
    cell = ROWS["ensemble of 2 plain networks, as a cascade"].make(plan, 0)
    random = np.random.default_rng(0)
    # Where the first member's highest probability is high, it is right; elsewhere the second is.
    targets = random.integers(0, 3, 400)
    sure = random.random(400) < 0.7
    first = np.where(sure, 0.9, 0.4)[:, None] * np.eye(3)[np.where(sure, targets, (targets + 1) % 3)]
    first += (1 - first.sum(1, keepdims=True)) * np.where(first == 0, 0.5, 0)
    second = 0.98 * np.eye(3)[targets] + 0.02 / 3
    mean = (first + second) / 2
    both = Outputs(torch.from_numpy(np.log(mean)), torch.from_numpy(np.log([first, second])), torch.from_numpy(targets))
    said, share = cell._said({"validation": both, "test": both})
    assert share == pytest.approx(0.5 + 0.5 * (~sure).mean())
    wanted = np.where(sure[:, None], first, mean)
    np.testing.assert_allclose(said["test"].log_probabilities.exp(), wanted)
    assert (said["test"].log_probabilities.argmax(1) == said["test"].targets).all()
    assert said["test"].branches is None
    whole = ROWS["ensemble of 2 plain networks"].make(plan, 0)
    assert whole._said({"test": both}) == ({"test": both}, 1.0)


def test_a_control_trains_twice_as_long_and_is_then_shown_mirror_images(plan):
    plain, longer, both = (ROWS[f"plain{how}"].make(plan, 0) for how in ("", *_LONGER))
    assert longer.recipe.epochs == both.recipe.epochs == 2 * plain.recipe.epochs
    assert replace(longer.recipe, epochs=plain.recipe.epochs) == plain.recipe
    # One training for both: what the second is made from is the first's.
    assert key_of(both.averaged().settings()) == key_of(longer.averaged().settings())


def test_branches_go_on_from_the_weights_of_the_plain_network(plan, tmp_path):
    cell = ROWS["plain, then 15 epochs as K=2, half joint, one sees the mirror image, lr 0.02"].make(plan, 0)
    still = replace(cell.recipe, epochs=1, lr=1e-12, calibration_lr=0.0, warmup=0.0, weight_decay=0.0)
    finish(replace(cell, recipe=still), tmp_path)
    start, tuned = (
        load_checkpoint(next(tmp_path.glob(f"{name}-seed0-*")) / CHECKPOINT)[0].layer1[0].conv1
        for name in ("16-plain-average-of-the-weights", "16-plain-then-15-epochs*lr-0.02")
    )
    mean_kernel = tuned.calibration.sum(0) * tuned.weight / 2
    torch.testing.assert_close(mean_kernel, start.calibration[0] * start.weight, rtol=1e-4, atol=1e-6)
    assert not torch.equal(tuned.calibration[0], tuned.calibration[1])
    assert cell.settings()["start"] == key_of(cell.start.settings())


def test_no_two_rows_are_one_cell(plan):
    keys = {label: key_of(row.make(plan, 0).settings()) for label, row in ROWS.items()}
    assert len({*keys.values()}) == len(keys), keys


@pytest.mark.parametrize("page", sorted(RESULTS.glob("pays_*narrow*.md")), ids=lambda page: page.stem)
def test_the_published_pairs_are_students_intervals_of_the_records(page):
    found = {record["name"]: record["measured"] for record in json.loads(page.with_suffix(".json").read_text("utf-8"))}

    def measured(label: str) -> dict[str, dict[str, object]]:
        return {name[-1]: found[name] for name in found if re.fullmatch(rf"(16 )?{re.escape(label)} seed\d", name)}

    section = page.read_text(encoding="utf-8").partition("\n## At equal cost\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert {row[0] for row in rows[2:]} >= {"K=2, joint", "K=4, joint", "K=2, joint, dense"}
    assert {label for pair in pays.EQUALS for label in pair} <= {row.label for row in ALL}
    for label, control, parameters, multiplied, error, *_ in rows[2:]:
        ours, theirs = measured(label), measured(control)
        for text, name in ((parameters, "trained_parameters"), (multiplied, "multiply_adds")):
            mine, other = (np.mean([record[name] for record in those.values()]) for those in (ours, theirs))
            assert text == f"{mine / other:.1f} x"
        both = sorted(ours.keys() & theirs.keys())
        mine, other = ([those[seed]["test"]["error_percent"] for seed in both] for those in (ours, theirs))
        if len(both) > 1:
            low, high = ttest_rel(mine, other).confidence_interval()
            assert error.partition(":")[0] == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
            assert ("beyond" in error) == (low > 0 or high < 0)
        else:
            assert error == f"{mine[0] - other[0]:+.2f}: one seed, no spread"


@pytest.mark.slow
def test_an_ensemble_is_four_trainings_and_costs_them(plan, tmp_path):
    row = ROWS["ensemble of 4 plain networks"]
    measured = finish(row.make(plan, 0), tmp_path).measured
    members = [finish(member, tmp_path).measured for member in row.make(plan, 0).members]
    assert len({member["test"]["nll"] for member in members}) == 4  # none is another's network
    assert measured["multiply_adds"] == sum(member["multiply_adds"] for member in members)
    assert measured["doubt"]["kl"] > 0


@pytest.mark.slow
def test_a_teacher_may_be_the_mean_of_networks_trained_apart(plan, tmp_path):
    cell = ROWS["plain, taught by ensemble of 4 plain networks, average of the weights"].make(plan, 0)
    assert finish(cell, tmp_path).measured["deployed_parameters"] < 80_000
    places = (cell.teacher, *cell.teacher.members)
    teacher, *members = (load_checkpoint(folder_of(each, tmp_path) / CHECKPOINT)[0] for each in places)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        wanted = torch.stack([member(images).softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(teacher(images).softmax(1), wanted)
    assert len(members) == 4


def test_few_pictures_are_another_task(place, tmp_path):
    plans = [make_plan("medium", f"cifar10:{place}", 1, tmp_path, narrow=True, few=few) for few in (True, False)]
    few, many = (ROWS["plain"].make(plan, 0) for plan in plans)
    data, held_out = load_data(plans[0].data, 16).hold_out(few.recipe.validation, 0)
    assert (len(data.train), len(held_out)) == (12, 108)
    assert key_of(few.settings()) != key_of(many.settings())
    assert plans[0].suffix == "_medium_cifar10_16_narrow_few"
    with pytest.raises(ConfigurationError, match="--few"):
        make_plan("quick", None, 1, tmp_path, few=True)


def test_averaged_kernels_are_the_mean_of_the_branches(plan):
    from experiments._trial import averaged

    cell = ROWS["K=4, joint"].make(plan, 0)
    data = load_data(plan.data, 16)
    model = build_model(cell.recipe, data)
    plain = averaged(model, cell.recipe, data)
    conv = model.layer1[0].conv1
    wanted = sum(conv.calibration[k] * conv.weight for k in range(4)) / 4
    torch.testing.assert_close(plain.layer1[0].conv1.weight, wanted)
    assert plain.bn1.running_mean.abs().max() > 0  # measured


def of_separate_branches(plan, row, kernels):
    """Return the network of a row, after comparing each branch with a plain one of ``kernels(convolution, k)``."""
    cell = ROWS[row].make(plan, 0)
    data = load_data(plan.data, 16)
    model = BUILDERS[cell.network](cell.recipe, data).eval()
    plain = fold(build_model(replace(cell.recipe, branches=1), data)).eval()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        for k, logits in enumerate(model.forward_branches(images)):
            for name, module in model.named_modules():
                if isinstance(module, CalibratedConv2d):
                    plain.get_submodule(name).weight.copy_(kernels(module, k))
            torch.testing.assert_close(plain(images), logits)
    return model


def test_late_branches_are_plain_networks_of_the_same_first_stages(plan):
    model = of_separate_branches(plan, "K=4 from the third stage on, joint", lambda m, k: m.calibration[k] * m.weight)
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    early = [n for n, m in model.named_modules() if isinstance(m, CalibratedConv2d)]
    assert {name.partition(".")[0] for name in early} == {"layer3", "layer4"}


def test_free_calibration_begins_as_ours_and_may_become_negative(plan):
    cell = ROWS["K=2, joint, R of any sign"].make(plan, 0)
    data = load_data(plan.data, 16)
    free, ours = (build(cell.recipe, data) for build in (BUILDERS[cell.network], build_model))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    precise = [deepcopy(model).double() for model in (free, ours)]
    for module in (each for model in precise for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
        module.eps = 1e-30  # beside which the scale of a convolution is nothing
    torch.testing.assert_close(*(model(images.double()) for model in precise))  # in training all are normalised
    optimizer = timm.optim.create_optimizer_v2(free, opt="csgd", lr=1.0, momentum=0.0, weight_decay=0.0, noise_std=0.0)
    free(images).square().sum().backward()
    wanted = free.layer1[0].conv1.calibration.detach() - free.layer1[0].conv1.calibration.grad
    optimizer.step()
    torch.testing.assert_close(free.layer1[0].conv1.calibration.detach(), wanted)  # neither clipped nor normalised


@pytest.mark.parametrize("name", ["K=2, joint, random signs", "K=2, joint, learned scales"])
def test_scaled_branches_are_plain_networks_whose_channels_are_scaled(plan, name):
    def kernels(module, k):
        assert module.input_scale.unique().tolist() == [-1, 1]
        scaled = [w * module.input_scale[k, i] for i, w in enumerate(module.weight.unbind(1))]
        return module.calibration[k] * torch.stack(scaled, dim=1)

    model = of_separate_branches(plan, name, kernels)
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fold(model)(images), model(images))
    learned = [n for n, _ in model.named_parameters() if n.endswith("input_scale")]
    assert bool(learned) == (name == "K=2, joint, learned scales")
    assert set(learned) <= model.no_weight_decay()


def test_another_size_is_refused():
    with pytest.raises(MissingDataError, match="--medium"):
        pays.cells(make_plan("quick", None, 1, Path("nowhere")))
