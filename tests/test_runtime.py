"""Loading exported networks and classifying images with them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ccnn_zoo import hub, runtime
from ccnn_zoo.errors import ConfigurationError, ImageError, IntegrityError, MetadataError, RepositoryError
from ccnn_zoo.metadata import ModelMetadata

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")
RGB = ModelMetadata("ccnn_test", 2, LABELS, (3, 12, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), interpolation="bilinear")
GREY = ModelMetadata("ccnn_test", 1, LABELS[:2], (1, 8, 8), (0.1,), (0.3,))


def weights(metadata: ModelMetadata) -> np.ndarray:
    """The network's one matrix (C, classes): logits are the mean of each channel times it."""
    shape = (metadata.input_size[0], len(metadata.labels))
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def onnx_network(metadata: ModelMetadata, batch: int | str = "N") -> onnx.ModelProto:
    """Pool, flatten, multiply: a real network whose logits numpy can compute by itself."""
    classes = len(metadata.labels)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *metadata.input_size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weights(metadata), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_props())
    return model


def save_network(path: Path, metadata: ModelMetadata = RGB) -> Path:
    onnx.save(onnx_network(metadata), path)
    return path


def probabilities_of(colour: tuple[int, ...], metadata: ModelMetadata = RGB) -> np.ndarray:
    """What the network gives for a picture of one colour, computed without the runtime."""
    features = (np.array(colour, float) / 255 - metadata.mean) / metadata.std
    exponentials = np.exp(features @ weights(metadata).astype(float))
    return exponentials / exponentials.sum()


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (10, 12)) -> Image.Image:
    return Image.new("RGB", size, colour)


COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 30), (128, 128, 128)]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "network.onnx")


@pytest.fixture(scope="module")
def classifier(network) -> runtime.ImageClassifier:
    return runtime.load(network, device="cpu", batch_size=2)


@pytest.fixture
def repository(tmp_path, network) -> Path:
    """A model repository on disk, as publishing leaves it: every file stands in manifest.json."""
    if not hasattr(hub, "download"):
        pytest.skip("ccnn_zoo.hub.download is not there yet")
    folder = tmp_path / "repository"
    (folder / "onnx").mkdir(parents=True)
    shutil.copy(network, folder / "onnx" / "model.onnx")
    (folder / "README.md").write_text("# A network\n")
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    return folder


def test_a_loaded_network_says_what_and_where_it_is(classifier):
    assert classifier.metadata == RGB
    assert (classifier.provider, classifier.device) == ("CPUExecutionProvider", "cpu")
    assert repr(classifier) == ("ImageClassifier('ccnn_test', branches=2, 6 classes, CPUExecutionProvider)")


def test_probabilities_are_the_softmax_of_the_logits(classifier):
    for colour in COLOURS:
        (result,) = classifier.classify(plain(colour), top_k=6)
        expected = probabilities_of(colour)
        assert [p.index for p in result.predictions] == list(np.argsort(-expected))
        assert [p.label for p in result.predictions] == [LABELS[p.index] for p in result.predictions]
        np.testing.assert_allclose([p.probability for p in result.predictions], np.sort(expected)[::-1], rtol=1e-5)
        assert (result.label, result.probability) == (
            result.predictions[0].label,
            result.predictions[0].probability,
        )
        assert result.error is None


def test_grey_networks_take_colour_pictures(tmp_path):
    classifier = runtime.load(save_network(tmp_path / "grey.onnx", GREY), device="cpu")
    (result,) = classifier.classify(np.full((30, 20), 77, np.uint8))
    assert result.probability == pytest.approx(probabilities_of((77,), GREY).max(), rel=1e-5)
    assert classifier.classify(plain((77, 77, 77)))[0].predictions == result.predictions


def test_many_images_of_every_kind_keep_their_order(classifier, tmp_path):
    paths = []
    for i, colour in enumerate(COLOURS[:3]):
        paths.append(tmp_path / f"{i}.png")
        plain(colour).save(paths[-1])
    images = [paths[0], str(paths[1]), plain(COLOURS[3]), np.array(plain(COLOURS[4])), paths[2]]
    results = classifier.classify(images, top_k=1)
    assert [r.source for r in results] == [str(paths[0]), str(paths[1]), "image 2", "image 3", str(paths[2])]
    for result, colour in zip(results, [COLOURS[i] for i in (0, 1, 3, 4, 2)], strict=True):
        assert len(result.predictions) == 1
        assert result.probability == pytest.approx(probabilities_of(colour).max(), rel=1e-5)
    assert classifier.classify(images[0], top_k=1) == classifier.classify(tuple(images), top_k=1)[:1]
    assert classifier.classify([]) == []


def test_unreadable_images_leave_the_others_classified(classifier, tmp_path):
    good, half = tmp_path / "good.png", tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(half)
    half.write_bytes(half.read_bytes()[:2000])
    plain(COLOURS[0]).save(good)
    gone = tmp_path / "gone.png"
    results = classifier.classify([gone, half, good, tmp_path, good])
    assert [r.error is None for r in results] == [False, False, True, False, True]
    assert results[2].predictions == results[4].predictions
    for result, path in zip(results[:2], (gone, half), strict=True):
        assert result.predictions == ()
        assert result.source == str(path)
        assert str(path) in result.error
        with pytest.raises(ImageError, match=path.name):
            _ = result.label
        with pytest.raises(ImageError, match=path.name):
            _ = result.probability


def test_images_are_drawn_one_batch_at_a_time(classifier):
    drawn = []

    def endless():
        while True:
            drawn.append(None)
            yield plain(COLOURS[len(drawn) % 5])

    stream = classifier.classify_stream(endless())
    assert drawn == []
    assert next(stream).source == "image 0"
    assert len(drawn) == 2
    assert [next(stream).source for _ in range(2)] == ["image 1", "image 2"]
    assert len(drawn) == 4


def test_batch_size_does_not_change_results(network, classifier):
    images = [plain(colour, (17, 23)) for colour in COLOURS]
    whole = runtime.load(network, device="cpu", batch_size=5, threads=1).classify(images)
    for one, other in zip(whole, classifier.classify(images), strict=True):
        assert (one.source, one.label) == (other.source, other.label)
        assert one.probability == pytest.approx(other.probability, rel=1e-5)


def test_threads_share_one_classifier(classifier):
    images = [plain(colour) for colour in COLOURS] * 4
    expected = classifier.classify(images)
    with ThreadPoolExecutor(8) as pool:
        assert all(result == expected for result in pool.map(classifier.classify, [images] * 16))


def test_wrong_arguments_are_refused_at_once(classifier, network):
    for top_k in (0, -1, 2.5, None):
        with pytest.raises(ConfigurationError, match=f"top_k .*{top_k}"):
            classifier.classify_stream([], top_k)
    with pytest.raises(ImageError, match=r"image 1 is an array of float64.*uint8"):
        classifier.classify_stream(["gone.png", np.zeros((4, 4))])
    with pytest.raises(ImageError, match="image 0 is a dict"):
        classifier.classify([{}])
    with pytest.raises(ImageError, match="image 2 is a float"):
        classifier.classify(x for x in (plain(COLOURS[0]), "gone.png", 0.5))
    with pytest.raises(ConfigurationError, match=r"batch_size .*0"):
        runtime.load(network, device="cpu", batch_size=0)
    with pytest.raises(ConfigurationError, match=r"threads .*0"):
        runtime.load(network, device="cpu", threads=0)
    assert len(classifier.classify(plain(COLOURS[0]), top_k=99)[0].predictions) == len(LABELS)


def test_predict_returns_the_logits(classifier):
    batch = np.random.default_rng(1).normal(size=(5, 3, 12, 10)).astype(np.float32)
    expected = batch.mean(axis=(2, 3)) @ weights(RGB)
    np.testing.assert_allclose(classifier.predict(batch), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict(batch[::-1, :, ::-1]), expected[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 3, 12, 10)), "float32.*float64"),
        ([[1.0]], "a list"),
        (np.zeros((3, 12, 10), np.float32), r"\(N, 3, 12, 10\).*\(3, 12, 10\)"),
        (np.zeros((1, 3, 10, 12), np.float32), r"\(1, 3, 10, 12\)"),
        (np.zeros((0, 3, 12, 10), np.float32), "at least 1"),
        (np.full((1, 3, 12, 10), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 12, 10), -np.inf, np.float32), "infinity"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_predict_refuses_other_batches(classifier, batch, message):
    with pytest.raises(ConfigurationError, match=message):
        classifier.predict(batch)


def test_a_network_that_overflows_is_reported(tmp_path):
    model = onnx_network(RGB)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 6), 3e38, np.float32), "weight"))
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(IntegrityError, match=r"huge\.onnx .*finite"):
        runtime.load(tmp_path / "huge.onnx", device="cpu").classify(plain(COLOURS[0]))


@pytest.mark.parametrize("kept", [0, 1, 60, 0.5, 0.99], ids=str)
def test_damaged_files_are_named_with_the_remedy(tmp_path, network, kept):
    data = network.read_bytes()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises((IntegrityError, MetadataError), match=r"damaged\.onnx .*(again|Export)"):
        runtime.load(path, device="cpu")


def test_a_file_of_something_else_is_no_network(tmp_path, capfd):
    path = tmp_path / "picture.onnx"
    plain(COLOURS[0]).save(path, "PNG")
    with pytest.raises(IntegrityError, match=r"picture\.onnx is no ONNX network.*again"):
        runtime.load(path, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_foreign_networks_are_refused(tmp_path):
    model = onnx_network(RGB)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(MetadataError, match=r"foreign\.onnx has no ccnn-zoo metadata.*ccnn export"):
        runtime.load(tmp_path / "foreign.onnx", device="cpu")


def _with_props(model: onnx.ModelProto, **fields) -> onnx.ModelProto:
    props = {p.key: p.value for p in model.metadata_props} | {k: json.dumps(v) for k, v in fields.items()}
    helper.set_model_props(model, props)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_with_props(onnx_network(RGB), labels=LABELS[:5]), r"\['N', 6\] for 5 labels"),
        (_with_props(onnx_network(RGB), input_size=(3, 10, 12)), r"\['N', 3, 12, 10\].*\(3, 10, 12\)"),
        (_with_props(onnx_network(RGB), preprocessing_in_graph=True), r"images: float32.*one uint8 input"),
    ],
    ids=["labels", "input_size", "preprocessing"],
)
def test_metadata_that_contradict_the_graph_are_refused(tmp_path, model, message):
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(MetadataError, match=rf"odd\.onnx .*{message}.*Export"):
        runtime.load(tmp_path / "odd.onnx", device="cpu")


def test_repositories_load_by_folder_by_local_name_and_by_file(repository, classifier, monkeypatch):
    expected = classifier.classify(plain(COLOURS[0]))
    file = repository / "onnx" / "model.onnx"
    for name in (repository, f"local:{repository}", file, str(file)):
        assert runtime.load(name, device="cpu").classify(plain(COLOURS[0])) == expected
    monkeypatch.chdir(repository / "onnx")
    for name in ("model.onnx", ".."):
        assert runtime.load(name, device="cpu").classify(plain(COLOURS[0])) == expected


def test_a_tampered_repository_is_refused_however_it_is_named(repository, monkeypatch):
    file = repository / "onnx" / "model.onnx"
    data = bytearray(file.read_bytes())
    position = data.index(weights(RGB).tobytes())
    data[position] ^= 1  # same size, still a valid network
    file.write_bytes(data)
    monkeypatch.chdir(file.parent)
    for name in (repository, f"local:{repository}", file, "model.onnx"):
        with pytest.raises(IntegrityError, match=r"model\.onnx"):
            runtime.load(name, device="cpu")


@pytest.mark.parametrize("name", ["gone.onnx", "models/gone.onnx", "no such thing", "a/b/c", "resnet", "/nowhere/at"])
def test_names_of_nothing_say_what_was_tried(name):
    with pytest.raises(RepositoryError, match=rf"{name}.*tried .*local:.*org/name"):
        runtime.load(name)


def test_revision_is_for_hub_ids_only(network, tmp_path):
    for name in (network, tmp_path, f"local:{tmp_path}"):
        with pytest.raises(ConfigurationError, match=r"revision is for Hub ids.*Leave it out"):
            runtime.load(name, revision="main")


def test_neither_torch_nor_timm_nor_onnx_is_imported(network):
    program = f"""
import sys
import ccnn_zoo
assert "onnxruntime" not in sys.modules and "numpy" not in sys.modules
import ccnn_zoo.runtime, numpy
result, = ccnn_zoo.runtime.load({str(network)!r}).classify(numpy.zeros((9, 9, 3), "uint8"))
assert result.error is None
print(sorted({{"torch", "torchvision", "timm", "onnx", "huggingface_hub"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_repositories_need_neither_torch_nor_timm_nor_onnx(repository):
    program = f"""
import sys
from ccnn_zoo import runtime
runtime.load({str(repository)!r}, device="cpu")
print(sorted({{"torch", "torchvision", "timm", "onnx"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
