"""Some of the branches, and the others only where these are in doubt: from torch to files to the runtime."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from forks import ccnn
from PIL import Image
from scipy.special import logsumexp, softmax
from separate_networks import randomize

from ccnn_zoo import runtime, uncertainty
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint
from ccnn_zoo.errors import CCNNError, ConfigurationError, IntegrityError, MetadataError, RepositoryError
from ccnn_zoo.export import CascadeReport, cascade_to_onnx, chosen_branches
from ccnn_zoo.uncertainty import Cascade, cascade_curve, fit_cascade

K, CLASSES = 3, 5
OVERLAY = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,), "label_names": list("abcde")}


def network(name: str = "ccnn_resnet20_cifar", **arguments: object) -> torch.nn.Module:
    shallow = {"layers": (1, 1, 1)} if name == "ccnn_resnet20_cifar" else {}
    given = {"branches": K, "num_classes": CLASSES, "in_chans": 1, "pretrained_cfg_overlay": OVERLAY}
    given |= {**shallow, **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(timm.create_model(name, **given)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(420, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory) -> tuple[torch.nn.Module, CascadeReport]:
    """A network that is mostly right, and branches alone that are less often so."""
    model = network(merge="probability")
    with torch.no_grad():
        targets = model(images).argmax(1)
    targets[::7] = 0
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    return model, cascade_to_onnx(model, path, held_out=[(images, targets)])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ccnn_resnet20_cifar", {}),
        ("ccnn_resnet20_cifar", {"merge": "concat"}),
        ("ccnn_resnet20_cifar", {"merge": "probability"}),
        ("ccnn_nin", {}),
        ("ccnn", {"base": "resnet18", "merge": "max"}),
    ],
)
@torch.no_grad()
def test_chosen_branches_say_alone_what_they_say_in_the_whole(name, arguments, images):
    model = network(name, **arguments)
    x = images[:3] if name == "ccnn_resnet20_cifar" else torch.nn.functional.interpolate(images[:3], 64)
    apart = model.forward_branches(x)
    for chosen in ([1], [2, 0]):
        part = chosen_branches(model, chosen)
        torch.testing.assert_close(part.forward_branches(x), apart[chosen], rtol=1e-4, atol=1e-4)
        weights = sum(module.weight.numel() for module in part.modules() if isinstance(module, torch.nn.Conv2d))
        whole = chosen_branches(model, range(K))
        assert weights < sum(m.weight.numel() for m in whole.modules() if isinstance(m, torch.nn.Conv2d))
    torch.testing.assert_close(chosen_branches(model, [1])(x), apart[1], rtol=1e-4, atol=1e-4)


def with_record(source: Path, target: Path, **changed: object) -> Path:
    """Write the file with another record of its cascade."""
    model = onnx.load(source)
    (entry,) = (one for one in model.metadata_props if one.key == "cascade")
    entry.value = json.dumps({**json.loads(entry.value), **changed})
    onnx.save(model, target)
    return target


def test_what_cannot_be_chosen_is_said():
    for chosen in ([], [K], [-1], [0, 0], [True], ["0"]):
        with pytest.raises(ConfigurationError, match="there are branches 0 to 2"):
            chosen_branches(network(), chosen)
    with pytest.raises(ConfigurationError, match="dense"):
        chosen_branches(network(mixing="dense"), [0])
    with pytest.raises(ConfigurationError, match="without a classifier there are no logits of branches"):
        chosen_branches(network(num_classes=0), [0])
    with pytest.raises(ConfigurationError, match="has no branches to take apart"):
        chosen_branches(torch.nn.Linear(2, 2), [0])


@torch.no_grad()
def test_the_runtime_runs_the_other_branches_on_doubtful_pictures_alone(exported, images, tmp_path, monkeypatch):
    model, report = exported
    first = model.forward_branches(images[:50])[report.chosen[0]].double().numpy()
    top = softmax(first, axis=1).max(1)
    doubted = top < np.median(top)
    expected = np.where(doubted[:, None], model(images[:50]).numpy(), first)
    for file in report.path.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = with_record(report.path, tmp_path / "net.onnx", threshold=float(np.median(top)))
    classifier = runtime.load(path, device="cpu", cascade=True)
    passed_on = []
    run = classifier._rest._session.run
    monkeypatch.setattr(classifier._rest._session, "run", lambda batch: passed_on.append(len(batch)) or run(batch))
    np.testing.assert_allclose(classifier.predict(images[:50].numpy()), expected, rtol=1e-4, atol=1e-4)
    assert sum(passed_on) == doubted.sum(), "no other picture"
    sure = classifier.predict(images[:50].numpy()[~doubted])
    np.testing.assert_allclose(sure, first[~doubted], rtol=1e-4, atol=1e-4)
    assert sum(passed_on) == doubted.sum(), "and none at all where none is in doubt"
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict(images[:5].numpy()), classifier.predict(images[:5].numpy()))
    with pytest.raises(ConfigurationError, match="numpy arrays"):
        classifier.predict(images[:5])


@torch.no_grad()
def test_as_many_branches_run_as_are_asked_for(exported, images):
    model, report = exported
    x = images[:9]
    alone = runtime.load(report.path, device="cpu", branches=1)
    assert alone.metadata.branches == 1
    np.testing.assert_allclose(
        alone.predict(x.numpy()), model.forward_branches(x)[report.chosen[0]], rtol=1e-4, atol=1e-4
    )
    for asked in ({}, {"branches": K}):
        whole = runtime.load(report.path, device="cpu", **asked)
        np.testing.assert_allclose(whole.predict(x.numpy()), model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigurationError, match="exported to run 1 or all 3 branches, got branches=2"):
        runtime.load(report.path, device="cpu", branches=2)
    with pytest.raises(ConfigurationError, match="leave branches=1 out"):
        runtime.load(report.path, device="cpu", branches=1, cascade=True)


def test_numbers_of_confidence_are_those_of_what_is_run(exported, images):
    _, report = exported
    loaded = [runtime.load(report.path, device="cpu", **asked) for asked in ({}, {"branches": 1}, {"cascade": True})]
    numbers = [one.metadata.confidence for one in loaded]
    assert len({one.temperature for one in numbers}) == 3
    assert numbers[2] == report.fitted.confidence
    assert numbers[2].pictures == report.fitted.pictures == 210, "not those on which the threshold was chosen"
    picture = ((images[0, 0] * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()
    (found,) = loaded[2].classify(picture, coverage=0.9, max_risk=0.1)
    assert found.prediction_set
    assert found.label in found.prediction_set
    assert found.agreement is None


def test_a_cheap_threshold_that_chance_made_right_is_passed_over():
    """From some threshold on no dearer one is wrong more often than the whole network; that one is chosen."""
    lucky = 0
    for seed in range(20):
        noise = np.random.default_rng(seed)
        targets = noise.integers(0, CLASSES, 1000)
        truth = np.eye(CLASSES)[targets]
        first, whole = (2.0 * truth + noise.standard_normal(truth.shape) for _ in range(2))
        chosen = fit_cascade(first, (first + whole) / 2, targets, 0.5).point.threshold
        first, whole, targets = (each[::2] for each in (first, (first + whole) / 2, targets))
        top = softmax(first, axis=1).max(1)
        wrong_first, wrong_whole = (each.argmax(1) != targets for each in (first, whole))
        steps = np.unique([0.0, *np.quantile(top, np.linspace(0, 1, 100)), 1.0])
        more = np.array([int(wrong_first[top >= step].sum() - wrong_whole[top >= step].sum()) for step in steps])
        last = np.flatnonzero(more > 0).max(initial=-1)
        assert chosen == pytest.approx(steps[last + 1])
        lucky += bool((more[:last] <= 0).any())
    assert lucky > 5


def test_the_threshold_is_the_cheapest_that_is_wrong_no_more_often(images):
    noise = np.random.default_rng(0)
    targets = noise.integers(0, CLASSES, 1000)
    truth = np.eye(CLASSES)[targets]
    first = 2.0 * truth + 1.5 * noise.standard_normal(truth.shape)
    whole = 6.0 * truth + noise.standard_normal(truth.shape)
    curve = cascade_curve(first, whole, targets, 0.25)
    assert (curve[0].passed_on, curve[0].cost) == (0, 0.25)
    assert curve[0].wrong == (first.argmax(1) != targets).sum()
    assert curve[-1].passed_on == curve[-1].cost == 1
    assert curve[-1].wrong == (whole.argmax(1) != targets).sum()
    found = fit_cascade(first, whole, targets, 0.25)
    one = slice(0, None, 2)
    top = softmax(first[one], axis=1).max(1)

    def wrong(threshold: float) -> int:
        said = np.where((top < threshold)[:, None], whole[one], first[one])
        return int((said.argmax(1) != targets[one]).sum())

    least = wrong(1.1)
    assert wrong(found.point.threshold) <= least
    cheaper = np.quantile(top, np.linspace(0, (top < found.point.threshold).mean() - 0.02, 50))
    assert all(wrong(threshold) > least for threshold in cheaper)
    assert found.point.cost == pytest.approx(0.25 + 0.75 * found.point.passed_on)
    # A first part that knows nothing passes on all, and that is said.
    useless = fit_cascade(noise.standard_normal(truth.shape), whole, targets, 0.25)
    assert not useless.pays
    same = fit_cascade(whole, whole, targets, 0.25)
    assert same.pays
    assert same.point.cost == 0.25
    with pytest.raises(ConfigurationError, match="199 held-out pictures are too few"):
        fit_cascade(first[:199], whole[:199], targets[:199], 0.25)


def test_parts_make_up_the_whole():
    noise = np.random.default_rng(0)
    each = noise.standard_normal((4, 6, CLASSES))
    mean = uncertainty.merged(each[:1].mean(0), each[1:].mean(0), 1, 4, "mean")
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-5)
    logs = [np.log(softmax(part, axis=-1).mean(0)) for part in (each[:1], each[1:], each)]
    both = uncertainty.merged(logs[0], logs[1], 1, 4, "probability")
    np.testing.assert_allclose(both, logs[2], rtol=1e-5)
    assert np.abs(logsumexp(both, axis=1)).max() < 1e-5


def test_files_that_are_missing_or_others_are_refused(exported, tmp_path):
    _, report = exported
    for file in report.path.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / report.path.name
    shutil.copy(tmp_path / "net_first.onnx", tmp_path / "net_rest.onnx")
    with pytest.raises(IntegrityError, match=r"net_rest\.onnx is not the one"):
        runtime.load(path, device="cpu", cascade=True)
    (tmp_path / "net_rest.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"needs net_rest\.onnx beside it"):
        runtime.load(path, device="cpu", cascade=True)
    with pytest.raises(ConfigurationError, match=r"has no cascade: .*--cascade"):
        runtime.load(tmp_path / "net_first.onnx", device="cpu", cascade=True)


ABSURD = {
    "version": [0, "1", True],
    "branches": [1, "3", 10**9],
    "first": [0, K, True],
    "merge": ["max", 1],
    "threshold": [-0.1, 1.1, float("nan"), None, True],
    "files": [
        {},
        {"first": "../a.onnx", "rest": "b.onnx"},
        {"first": "/etc/a.onnx", "rest": "b.onnx"},
        {"first": ".a.onnx", "rest": "b"},
    ],
    "sha256": [{}, {"first": "0", "rest": "0" * 64}],
    "confidence": [None, {}, {"temperature": 0}],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
def test_absurd_cascades_of_a_file_are_refused_by_name(exported, tmp_path, field, value):
    with_record(exported[1].path, tmp_path / "hostile.onnx", **{field: value})
    with pytest.raises(MetadataError, match=rf"(cascade|confidence).*{field if field != 'confidence' else ''}"):
        runtime.load(tmp_path / "hostile.onnx", device="cpu", cascade=True)
    runtime.load(tmp_path / "hostile.onnx", device="cpu")  # which does not ask


def test_the_record_comes_back_to_the_bit(exported):
    text = next(one.value for one in onnx.load(exported[1].path).metadata_props if one.key == "cascade")
    assert Cascade.from_json(text).to_json() == text
    for broken in ("", "[]", "{", "{}", "[" * 100_000):
        with pytest.raises(MetadataError, match="cascade"):
            Cascade.from_json(broken)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"merge": "max"}, {}, "merge='max'"),
        ({}, {"first": K}, "less than the network's 3 branches, got 3"),
        ({"branches": 1}, {}, "less than the network's 1 branches"),
        ({}, {"preprocess": True}, "leave out preprocess"),
    ],
)
def test_networks_without_a_cascade_leave_nothing_behind(images, tmp_path, arguments, options, message):
    targets = torch.zeros(len(images), dtype=torch.long)
    with pytest.raises(CCNNError, match=message):
        cascade_to_onnx(network(**arguments), tmp_path / "net.onnx", held_out=[(images, targets)], **options)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_three_files_and_says_whether_it_pays(tmp_path, images):
    record = TrainingRecord(data="digits", seed=0, epochs=0, metrics={})
    save_checkpoint(tmp_path / "net.safetensors", network(), record)
    for number, image in enumerate(images[:250, 0]):
        folder = tmp_path / "held" / "abcde"[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((image * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()).save(folder / f"{number}.png")
    command = ["export", tmp_path / "net.safetensors", "--cascade", "--pictures", tmp_path / "held"]
    run = ccnn(*command, "-o", tmp_path / "out" / "net.onnx")
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "net.onnx",
        "net_first.onnx",
        "net_rest.onnx",
    ]
    assert "% of the arithmetic: the other branches on" in run.stdout
    assert (
        len(
            runtime.load(tmp_path / "out" / "net.onnx", device="cpu", cascade=True).classify(
                images[0, 0].numpy().astype(np.uint8)
            )
        )
        == 1
    )
    whole = runtime.load(tmp_path / "out" / "net.onnx", device="cpu").predict(images[:9].numpy())
    all_doubted = with_record(tmp_path / "out" / "net.onnx", tmp_path / "out" / "doubted.onnx", threshold=1.0)
    cascade = runtime.load(all_doubted, device="cpu", cascade=True)
    np.testing.assert_allclose(cascade.predict(images[:9].numpy()), whole, rtol=1e-4, atol=1e-4)
    one = ["export", tmp_path / "net.safetensors", "--branches", "1", "-o", tmp_path / "one.onnx"]
    run = ccnn(*one)
    assert run.returncode == 0, run.stderr
    assert "1 of 3 branches: those that were trained together may be worth little alone" in run.stderr
    with torch.no_grad():
        expected = network().forward_branches(images[:9])[0]
    found = runtime.load(tmp_path / "one.onnx", device="cpu").predict(images[:9].numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for bad in (["-p", "int8"], ["--report", tmp_path / "x.json"]):
        refused = ccnn(*command, "-o", tmp_path / "out" / "net.onnx", *bad)
        assert refused.returncode == 1
        assert "--cascade" in refused.stderr
