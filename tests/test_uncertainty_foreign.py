"""Numbers of confidence for classifiers that somebody else exported, without a word of ours in the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from forks import ccnn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ccnn_zoo import runtime
from ccnn_zoo.uncertainty import fit

LABELS = [f"digit {n}" for n in range(10)]
METADATA = {"labels": LABELS, "mean": [0.0], "std": [1.0]}


@pytest.fixture(scope="module")
def linear() -> LogisticRegression:
    pixels, targets = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).standard_normal((600, 64))
    return LogisticRegression(C=10, max_iter=300).fit(pixels[:600] / 16 + 0.3 * noise, targets[:600])


def theirs(path: Path, linear: LogisticRegression, last: str | None, sides: list, opset: int = 17) -> Path:
    """A linear classifier of pictures (N, 1, 8, 8) as another exporter writes one."""
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W", "b"], ["scores"], transB=1),
    ]
    output = "scores"
    if last == "Softmax":
        nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1))
        output = "probabilities"
    elif last is not None:  # the same by hand
        nodes.append(helper.make_node("Exp", ["scores"], ["e"]))
        nodes.append(helper.make_node("ReduceSum", ["e", "axis"], ["sum"]))
        nodes.append(helper.make_node("Div", ["e", "sum"], ["share"]))
        output = "share"
    weights = {
        "W": linear.coef_.astype(np.float32),
        "b": linear.intercept_.astype(np.float32),
        "axis": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", *sides])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("held")
    digits = load_digits()
    for number in range(600, 900):
        place = root / LABELS[digits.target[number]]
        place.mkdir(exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9375).astype(np.uint8)).save(place / f"{number}.png")
    return root


def described(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({name: v for name, v in {**METADATA, **changes}.items() if v is not None}))
    return path


@pytest.mark.parametrize("last", ["Softmax", None])
def test_a_classifier_of_others_gets_its_numbers_and_goes_where_ours_go(linear, folders, tmp_path, last):
    path = theirs(tmp_path / "theirs.onnx", linear, last, [1, 8, 8])
    before = path.read_bytes()
    made = tmp_path / "known.onnx"
    found = ccnn(*("calibrate-confidence", path, "--metadata", described(tmp_path), "--pictures", folders, "-o", made))
    assert found.returncode == 0, found.stderr
    assert path.read_bytes() == before
    paths = sorted(folders.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(p), np.float32) / 255 for p in paths]).reshape(len(paths), -1)
    targets = np.array([LABELS.index(p.parent.name) for p in paths])
    wanted = fit(linear.decision_function(pixels), targets)
    classifier = runtime.load(made, device="cpu")
    numbers = classifier.metadata.confidence
    assert numbers.pictures == 300
    assert numbers.temperature == pytest.approx(wanted.temperature, rel=1e-3)
    assert numbers.sets["lac"] == pytest.approx(wanted.sets["lac"], abs=1e-4)
    for row, each in enumerate(classifier.classify(paths[:20], coverage=0.9)):
        assert each.label == LABELS[linear.predict(pixels[row : row + 1])[0]]
        probability = softmax(linear.decision_function(pixels[row : row + 1]) / numbers.temperature)[0]
        assert each.probability == pytest.approx(probability.max(), abs=1e-4)
        assert each.label in each.prediction_set
    names = [output.name for output in ort.InferenceSession(made, providers=["CPUExecutionProvider"]).get_outputs()]
    assert names == (["scores", "probabilities"] if last else ["scores"]), "what others read is still there"


@pytest.mark.parametrize(
    ("last", "sides", "changes", "options", "message"),
    [
        (None, [1, 8, 8], {"labels": None, "std": None}, [], "does not say its labels, std"),
        (None, [1, "h", "w"], {}, [], "does not say its input_size"),
        (None, [1, 8, 8], {"scale": 3}, [], "nobody knows scale"),
        (None, [1, 8, 8], {"std": [0.0]}, [], "std must be positive"),
        (None, [1, 8, 8], {"labels": LABELS[:9]}, [], "for 9 labels"),
        ("by hand", [1, 8, 8], {}, [], "gives probabilities, not logits"),
        ("Softmax", [1, 8, 8], {}, ["--outputs"], "opset 17"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(
    linear, folders, tmp_path, last, sides, changes, options, message
):
    path = theirs(tmp_path / "theirs.onnx", linear, last, sides)
    given = described(tmp_path, **changes)
    before = path.read_bytes()
    found = ccnn("calibrate-confidence", path, "--metadata", given, "--pictures", folders, *options)
    assert found.returncode == 1
    assert message in found.stderr
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_has_the_name_of_ours_is_kept(linear, folders, tmp_path):
    path = theirs(tmp_path / "theirs.onnx", linear, "Softmax", [1, 8, 8], opset=18)
    arguments = ("calibrate-confidence", path, "--metadata", described(tmp_path), "--pictures", folders)
    found = ccnn(*arguments, "--outputs", "-o", tmp_path / "x.onnx")
    assert found.returncode == 1
    assert "has probabilities of its own" in found.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_says_nothing_names_the_way(linear, folders, tmp_path):
    path = theirs(tmp_path / "theirs.onnx", linear, None, [1, 8, 8])
    found = ccnn("calibrate-confidence", path, "--pictures", folders)
    assert found.returncode == 1
    assert "--metadata" in found.stderr
