"""Numbers of confidence: fitted on held-out pictures, carried in the file, given by graph and runtime alike."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import scipy.stats
import timm
import torch
from forks import ccnn
from PIL import Image
from scipy.special import log_softmax, logsumexp, softmax
from separate_networks import randomize
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from torch_uncertainty.metrics import AURC
from torch_uncertainty.post_processing import ConformalClsTHR
from torchmetrics.functional.classification import multiclass_calibration_error

from ccnn_zoo import runtime, uncertainty
from ccnn_zoo.errors import ConfigurationError, ExportError, MetadataError
from ccnn_zoo.export import add_confidence, to_onnx
from ccnn_zoo.uncertainty import COVERAGES, RISKS, Confidence, fit

K, CLASSES = 2, 10


@pytest.fixture(scope="module")
def linear() -> LogisticRegression:
    """A classifier of noisy digits that is wrong on an eighth of them and too sure of itself."""
    pixels, targets = noisy_digits(0)
    return LogisticRegression(C=10, max_iter=300).fit(pixels[:400], targets[:400])


def noisy_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, targets = load_digits(return_X_y=True)
    noise = np.random.default_rng(seed)
    order = noise.permutation(len(pixels))
    return (pixels / 16 + 0.2 * noise.standard_normal(pixels.shape))[order], targets[order]


@pytest.fixture(scope="module")
def held_out(linear) -> tuple[np.ndarray, np.ndarray]:
    pixels, targets = noisy_digits(0)
    return linear.decision_function(pixels[400:1100]), targets[400:1100]


@pytest.fixture(scope="module")
def test_part(linear) -> tuple[np.ndarray, np.ndarray]:
    pixels, targets = noisy_digits(0)
    return linear.decision_function(pixels[1100:]), targets[1100:]


@pytest.fixture(scope="module")
def branched(tmp_path_factory) -> Path:
    """A network of two branches, of digits, whose branches are outputs too."""
    return _exported(tmp_path_factory.mktemp("branched") / "network.onnx", branch_outputs=True)


def _exported(path: Path, *, branch_outputs: bool, **arguments: object) -> Path:
    overlay = {
        "input_size": (1, 16, 16),
        "mean": (0.5,),
        "std": (0.25,),
        "label_names": [f"digit {n}" for n in range(10)],
    }
    torch.manual_seed(0)
    model = timm.create_model(
        "ccnn_resnet20_cifar",
        layers=(1, 1, 1),
        branches=K,
        num_classes=CLASSES,
        in_chans=1,
        pretrained_cfg_overlay=overlay,
        **arguments,
    )
    to_onnx(randomize(model).eval(), path, branch_outputs=branch_outputs)
    return path


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    digits = load_digits().images[:150]
    return np.kron(digits * 15.9375, np.ones((2, 2))).astype(np.uint8)


@pytest.fixture(scope="module")
def numbers(branched, pictures) -> Confidence:
    logits, branch_logits = runtime.load(branched, device="cpu").logits_of(list(pictures))
    targets = logits.argmax(1)
    targets[::5] = load_digits().target[:150:5]  # it is wrong on some
    return fit(logits, targets, branch_logits)


def test_the_temperature_is_scikit_learns(held_out, linear):
    logits, targets = held_out
    pixels, _ = noisy_digits(0)
    judge = CalibratedClassifierCV(FrozenEstimator(linear), method="temperature").fit(pixels[400:1100], targets)
    inverse = judge.calibrated_classifiers_[0].calibrators[0].beta_
    assert fit(logits, targets).temperature == pytest.approx(1 / inverse, rel=1e-3)


@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_sets_hold_the_true_class_as_often_as_they_promise(held_out, test_part, kind):
    found = fit(*held_out)
    logits, targets = test_part
    probability = softmax(logits / found.temperature, axis=1)
    sizes = []
    for coverage in COVERAGES:
        members = uncertainty.prediction_sets(probability, found.threshold_of_set(coverage, kind), kind)
        held = int(members[np.arange(len(targets)), targets].sum())
        # Held-out and test pictures are exchangeable: the number held is beta-binomial (Vovk 2012).
        n = len(held_out[1])
        rank = math.ceil((n + 1) * coverage)
        low, high = scipy.stats.betabinom.interval(0.999, len(targets), rank, n + 1 - rank)
        assert held >= low
        assert held <= high
        sizes.append(members.sum(1).mean())
    assert sizes == sorted(sizes)
    assert sizes[0] < CLASSES / 2, "a set of every class says nothing"


def test_sets_are_those_of_an_independent_library_at_its_threshold(held_out, test_part):
    logits = torch.from_numpy(held_out[0])
    judge = ConformalClsTHR(alpha=0.1, model=torch.nn.Identity(), enable_ts=False)
    judge.fit([(logits, torch.from_numpy(held_out[1]))])
    wanted = judge.conformal(torch.from_numpy(test_part[0])).numpy() > 0
    found = uncertainty.prediction_sets(softmax(test_part[0], axis=1), float(judge.q_hat))
    np.testing.assert_array_equal(found, wanted)


def test_what_is_measured_is_what_other_libraries_measure(held_out, test_part):
    numbers = fit(*held_out)
    logits, targets = test_part
    found = uncertainty.measure(logits, targets, numbers)
    before, after = softmax(logits, axis=1), softmax(logits / numbers.temperature, axis=1)
    assert found.pictures == len(targets)
    assert found.nll == pytest.approx(log_loss(targets, before))
    assert found.nll_fitted == pytest.approx(log_loss(targets, after))
    given = torch.from_numpy(targets)
    for ours, probability in ((found.ece_percent, before), (found.ece_percent_fitted, after)):
        judged = multiclass_calibration_error(torch.from_numpy(probability), given, num_classes=CLASSES, n_bins=15)
        assert ours == pytest.approx(100 * float(judged), abs=1e-4)
    area = AURC()
    area.update(torch.from_numpy(after), given)
    assert found.aurc_percent == pytest.approx(100 * float(area.compute()), rel=1e-3)
    wrong = after.argmax(1) != targets
    assert found.auroc_errors_percent == pytest.approx(100 * roc_auc_score(wrong, -after.max(1)))
    assert found.error_percent == pytest.approx(100 * wrong.mean())
    for coverage in COVERAGES:
        members = uncertainty.prediction_sets(after, numbers.threshold_of_set(coverage))
        assert found.covered_percent[str(coverage)] == pytest.approx(
            100 * members[np.arange(len(targets)), targets].mean()
        )
        assert found.set_size[str(coverage)] == pytest.approx(members.sum(1).mean())
    decided = after.max(1) >= numbers.threshold_of_decision(0.1)
    assert found.decided_percent["0.1"] == pytest.approx(100 * decided.mean())
    assert found.wrong_percent["0.1"] == pytest.approx(100 * wrong[decided].mean())
    assert found.wrong_percent["0.005"] is None, "nothing is decided at that risk"


def test_decisions_keep_the_risk(held_out, test_part):
    found = fit(*held_out)
    logits, targets = test_part
    probability = softmax(logits / found.temperature, axis=1)
    top, wrong = probability.max(1), probability.argmax(1) != targets
    assert wrong.mean() > 0.1, "otherwise there is nothing to keep"
    kept = {risk: found.threshold_of_decision(risk) for risk in RISKS}
    assert kept[0.005] == math.inf, "700 pictures cannot show that at most 1 in 200 is wrong"
    thresholds = [kept[risk] for risk in RISKS]
    assert thresholds == sorted(thresholds, reverse=True)
    for risk in (0.05, 0.1):
        decided = top >= kept[risk]
        assert decided.mean() > 0.2
        # By chance a few more may be wrong on the test part.
        assert wrong[decided].sum() <= scipy.stats.binom.ppf(0.99, decided.sum(), risk)


def test_scores_are_scipys(branched, pictures, numbers):
    logits, branch_logits = runtime.load(branched, device="cpu").logits_of(list(pictures))
    found = uncertainty.doubt(logits, branch_logits, numbers)
    t = numbers.temperature
    each = softmax(branch_logits.astype(float) / t, axis=-1)
    np.testing.assert_allclose(found.entropy, scipy.stats.entropy(softmax(logits / t, axis=1), axis=1), rtol=1e-5)
    information = scipy.stats.entropy(each.mean(0), axis=-1) - scipy.stats.entropy(each, axis=-1).mean(0)
    np.testing.assert_allclose(found.mutual_information, information, atol=1e-9)
    np.testing.assert_allclose(found.energy, -logsumexp(logits, axis=1), rtol=1e-6)
    same = branch_logits.argmax(-1) == logits.argmax(-1)
    np.testing.assert_array_equal(found.agreement, same.mean(0))
    ranks = [scipy.stats.percentileofscore(s, s, kind="mean") for s in (found.energy, found.mutual_information)]
    assert np.abs(found.percentile - np.max(ranks, axis=0)).max() < 2, "of its own held-out pictures"


def test_the_graph_gives_what_the_runtime_says(branched, pictures, numbers, tmp_path):
    path = add_confidence(branched, numbers, tmp_path / "with.onnx", outputs=True)
    before, after = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (branched, path))
    names = [output.name for output in after.get_outputs()]
    assert names == ["logits", "branch_logits", "probabilities", "branch_probabilities", "uncertainty", "ood_score"]
    x = ((pictures[:7, None] / 255 - 0.5) / 0.25).astype(np.float32)
    old, new = before.run(None, {"image": x}), dict(zip(names, after.run(None, {"image": x}), strict=True))
    np.testing.assert_allclose(new["logits"], old[0], rtol=1e-6, atol=1e-6)
    t = numbers.temperature
    logits, branch_logits = old[0].astype(float), old[1].astype(float)
    np.testing.assert_allclose(new["probabilities"], softmax(logits / t, axis=1), atol=1e-5)
    np.testing.assert_allclose(new["branch_probabilities"], softmax(branch_logits / t, axis=2), atol=1e-5)
    energies = -logsumexp(logits, axis=1)
    below = [(np.array(numbers.quantiles["energy"]) < one).sum() for one in energies]
    assert (new["ood_score"] >= np.minimum(below, 100) - 1).all()
    np.testing.assert_allclose(
        new["uncertainty"][:, 0], -(softmax(logits / t, axis=1) * log_softmax(logits / t, axis=1)).sum(1), atol=1e-5
    )
    found = runtime.load(path, device="cpu").classify(list(pictures[:7]), coverage=0.9, max_risk=0.1)
    for row, each in enumerate(found):
        assert each.probability == pytest.approx(new["probabilities"][row].max(), abs=1e-5)
        assert each.entropy == pytest.approx(new["uncertainty"][row, 0], abs=1e-5)
        assert each.mutual_information == pytest.approx(new["uncertainty"][row, 1], abs=1e-5)
        assert each.ood.percentile == pytest.approx(new["ood_score"][row], abs=1)
        assert each.ood.energy == pytest.approx(energies[row], rel=1e-5)
        assert each.branches == tuple(f"digit {top}" for top in new["branch_probabilities"][:, row].argmax(-1))
        likely = np.flatnonzero(new["probabilities"][row] >= 1 - numbers.sets["lac"]["0.9"] - 1e-6)
        assert {f"digit {c}" for c in likely} | {each.label} == set(each.prediction_set)
        assert (each.abstained is None) == (each.probability >= numbers.threshold_of_decision(0.1))


@pytest.mark.parametrize("with_branches", [True, False])
def test_logarithms_of_probabilities_are_unlike_by_their_branches_or_their_entropy(pictures, tmp_path, with_branches):
    """Their own energy is 0; what stands for it in the graph and in the runtime is what scipy makes of the logits."""
    path = _exported(tmp_path / "network.onnx", branch_outputs=with_branches, merge="probability")
    logits, branch_logits = runtime.load(path, device="cpu").logits_of(list(pictures))
    assert np.abs(logsumexp(logits, axis=1)).max() < 1e-4
    targets = logits.argmax(1)
    targets[::5] = load_digits().target[:150:5]  # it is wrong on some
    numbers = fit(logits, targets, branch_logits)
    alike = softmax(logits.astype(float) / numbers.temperature, axis=1)
    if with_branches:
        energies = -logsumexp(branch_logits.astype(float), axis=2).mean(0)
        parts = softmax(branch_logits.astype(float) / numbers.temperature, axis=2)
        known = [energies, scipy.stats.entropy(parts.mean(0), axis=1) - scipy.stats.entropy(parts, axis=2).mean(0)]
    else:
        assert branch_logits is None
        known = [scipy.stats.entropy(alike, axis=1)]
    ranks = np.max([(np.quantile(each, np.linspace(0, 1, 101)) < each[:, None]).sum(1) for each in known], axis=0)
    assert np.unique(ranks).size > 50
    add_confidence(path, numbers, outputs=True)
    images = ((pictures[:, None] / 255 - 0.5) / 0.25).astype(np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(["ood_score"], {"image": images})[0] - ranks).max() <= 1
    found = [each.ood.percentile for each in runtime.load(path, device="cpu").classify(list(pictures))]
    assert np.abs(np.array(found) - ranks).max() <= 1


def test_writing_again_leaves_one_of_each(branched, numbers, tmp_path):
    path = add_confidence(branched, numbers, tmp_path / "once.onnx", outputs=True)
    once = path.read_bytes()
    add_confidence(path, replace(numbers, temperature=numbers.temperature / 2), outputs=True)
    assert runtime.load(path, device="cpu").metadata.confidence.temperature == numbers.temperature / 2
    assert path.read_bytes() != once
    add_confidence(path, numbers, outputs=True)
    assert path.read_bytes() == once
    add_confidence(path, numbers)
    assert [o.name for o in onnx.load(path).graph.output] == ["logits", "branch_logits"]
    assert runtime.load(path, device="cpu").metadata.confidence == numbers


def test_a_file_without_numbers_says_nothing_and_names_the_remedy(branched, pictures, tmp_path):
    plain = tmp_path / "plain.onnx"
    model = onnx.load(branched)
    del model.graph.output[1:]
    onnx.save(model, plain)
    (found,) = runtime.load(plain, device="cpu").classify(pictures[0])
    rest = {name: value for name, value in asdict(found).items() if name not in ("source", "predictions")}
    assert set(rest.values()) == {None}
    for asked in ({"coverage": 0.9}, {"max_risk": 0.1}):
        with pytest.raises(ConfigurationError, match=r"carries no thresholds.*ccnn calibrate-confidence"):
            runtime.load(plain, device="cpu").classify(pictures[0], **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"coverage": 0.8}, r"coverage must be one of .*0\.9, 0\.95, 0\.99, got 0\.8"),
        ({"max_risk": True}, r"max_risk must be one of .*got True"),
        ({"coverage": 0.9, "sets": "raps"}, "sets must be one of lac, aps, got 'raps'"),
    ],
)
def test_what_was_not_fitted_is_refused(branched, pictures, numbers, tmp_path, asked, message):
    path = add_confidence(branched, numbers, tmp_path / "with.onnx")
    with pytest.raises(ConfigurationError, match=message):
        runtime.load(path, device="cpu").classify(pictures[0], **asked)


ABSURD = {
    "temperature": [0, -1, math.nan, math.inf, 1e9, True, "1", None, [1]],
    "pictures": [0, -5, 1.5, True, "9"],
    "version": [0, 2, "1", True, 1.0],
    "sets": [
        {},
        [],
        {"lac": {}},
        {"lac": {"1.5": 0.5}},
        {"lac": {"0.9": 2}},
        {"lac": {"0.9": None}},
        {"x": {"0.9": 0}},
        {"aps": {"0.9": 0.5}},
    ],
    "decide": [{}, {"0.02": -1}, {"0.02": math.nan}, {"2": 0.5}, 5],
    "quantiles": [
        {},
        {"energy": []},
        {"energy": [0.0] * 100},
        {"energy": [math.nan] * 101},
        {"energy": [*range(100, -1, -1)]},
        {"energy": {"0": 1}},
        {"other": [0.0] * 101},
    ],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
def test_absurd_numbers_of_a_file_are_refused_by_name(numbers, branched, tmp_path, field, value):
    model = onnx.load(branched)
    text = json.dumps({**json.loads(numbers.to_json()), field: value})
    model.metadata_props.add(key="confidence", value=text)
    onnx.save(model, tmp_path / "hostile.onnx")
    with pytest.raises(MetadataError, match=rf"hostile\.onnx.*{field}"):
        runtime.load(tmp_path / "hostile.onnx", device="cpu")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"temperature": 1}', "[" * 100_000, "null"])
def test_what_is_no_record_of_numbers_is_refused(branched, tmp_path, text):
    model = onnx.load(branched)
    model.metadata_props.add(key="confidence", value=text)
    onnx.save(model, tmp_path / "hostile.onnx")
    with pytest.raises(MetadataError, match=r"hostile\.onnx.*confidence"):
        runtime.load(tmp_path / "hostile.onnx", device="cpu")


def test_the_numbers_come_back_to_the_bit(numbers):
    assert Confidence.from_json(numbers.to_json()) == numbers


def test_too_few_pictures_and_foreign_classes_are_refused():
    logits = np.zeros((99, 3))
    with pytest.raises(ConfigurationError, match="99 held-out pictures are too few"):
        fit(logits, np.zeros(99, int))
    with pytest.raises(ConfigurationError, match="classes from 0 to 2"):
        fit(np.zeros((200, 3)), np.full(200, 3))
    with pytest.raises(ConfigurationError, match="finite"):
        fit(np.full((200, 3), np.nan), np.zeros(200, int))


def test_an_old_opset_is_refused_for_outputs_only(branched, numbers, tmp_path):
    model = onnx.load(branched)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(ExportError, match="opset 17"):
        add_confidence(tmp_path / "old.onnx", numbers, tmp_path / "new.onnx", outputs=True)
    assert not (tmp_path / "new.onnx").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, pictures) -> Path:
    """Held-out pictures in folders of their classes."""
    root = tmp_path_factory.mktemp("held-out")
    for number, (picture, target) in enumerate(zip(pictures, load_digits().target[:150], strict=True)):
        (root / f"digit {target}").mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / f"digit {target}" / f"{number}.png")
    return root


def test_from_a_folder_of_pictures_to_a_table_with_sets_and_the_most_doubtful_first(branched, folders, tmp_path):
    file = tmp_path / "fitted.onnx"
    run = ccnn("calibrate-confidence", branched, "--pictures", folders, "-o", file)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^150 held-out pictures, [\d.]+ % wrong; temperature", run.stdout)
    numbers = runtime.load(file, device="cpu").metadata.confidence
    paths = sorted(folders.rglob("*.png"))
    logits, branch_logits = runtime.load(branched, device="cpu").logits_of(paths)
    assert numbers == fit(logits, np.array([int(p.parent.name[-1]) for p in paths]), branch_logits)

    asked = ("--model", file, "--device", "cpu", "--coverage", 0.9, "--max-risk", 0.1)
    table = ccnn("classify", folders, *asked, "-o", tmp_path / "found.csv")
    assert table.returncode == 0, table.stderr
    with (tmp_path / "found.csv").open(newline="") as stream:
        rows = {row["source"]: row for row in csv.DictReader(stream)}
    expected = runtime.load(file, device="cpu").classify(paths, coverage=0.9, max_risk=0.1)
    for each in expected:
        row = rows[each.source]
        assert json.loads(row["prediction_set"]) == list(each.prediction_set)
        assert json.loads(row["branches"]) == list(each.branches)
        assert float(row["entropy"]) == pytest.approx(each.entropy)
        assert (row["abstained"] or None) == each.abstained

    shown = ccnn("classify", folders, *asked, "--most-doubtful", 3, "--json")
    assert shown.returncode == 0, shown.stderr
    found = [json.loads(line)["entropy"] for line in shown.stdout.splitlines()]
    assert found == pytest.approx(sorted((each.entropy for each in expected), reverse=True)[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate-confidence", "{file}"), "needs --pictures FOLDER"),
        (("calibrate-confidence", "{file}", "--pictures", "{file}"), "takes a folder of folders"),
        (("calibrate-confidence", "{folder}"), "is no training folder"),
        (("classify", "{file}", "--model", "{file}", "--most-doubtful", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said(branched, tmp_path, arguments, message):
    run = ccnn(*(argument.format(file=branched, folder=tmp_path) for argument in arguments))
    assert run.returncode == 1
    assert message in run.stderr


def test_pictures_of_an_unknown_class_are_refused(branched, folders, tmp_path):
    shutil.copytree(folders / "digit 0", tmp_path / "held" / "digit 0")
    shutil.copytree(folders / "digit 1", tmp_path / "held" / "cat")
    run = ccnn("calibrate-confidence", branched, "--pictures", tmp_path / "held", "-o", tmp_path / "x.onnx")
    assert run.returncode == 1
    assert re.search(r"held/cat is no class of .*which knows digit 0, digit 1", run.stderr)
    assert not (tmp_path / "x.onnx").exists()
