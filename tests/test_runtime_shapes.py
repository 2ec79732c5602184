"""Files of every shape: fixed batches, free sizes, half precision, pictures as they are, networks made by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_runtime import COLOURS, GREY, RGB, onnx_network, plain, probabilities_of, save_network, weights

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, IntegrityError, MetadataError

PICTURES = [plain(colour) for colour in COLOURS]
IN_GRAPH = replace(RGB, preprocessing_in_graph=True)


def network_of_pictures(metadata=IN_GRAPH) -> onnx.ModelProto:
    """Cast, transpose, scale, normalise, and then as ``onnx_network``: it takes uint8 pictures of any size."""
    channels = metadata.input_size[0]
    constants = {
        "weight": weights(metadata),
        "255": np.float32(255),
        "mean": np.array(metadata.mean, np.float32).reshape(channels, 1, 1),
        "std": np.array(metadata.std, np.float32).reshape(channels, 1, 1),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["nchw", "255"], ["unit"]),
            helper.make_node("Sub", ["unit", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normal"]),
            helper.make_node("GlobalAveragePool", ["normal"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        ],
        "pictures",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", channels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(metadata.labels)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_props())
    return model


def load(model: onnx.ModelProto, folder: Path, **options) -> runtime.ImageClassifier:
    onnx.save(model, folder / "network.onnx")
    return runtime.load(folder / "network.onnx", device="cpu", **options)


def retyped(model: onnx.ModelProto, name: str, shape: list[int | str]) -> onnx.ModelProto:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_fixed_batch_is_filled_and_its_filling_is_not_seen(tmp_path, size):
    classifier = load(onnx_network(RGB, batch=size), tmp_path, batch_size=3)
    results = classifier.classify(PICTURES, top_k=6)
    for result, colour in zip(results, COLOURS, strict=True):
        expected = probabilities_of(colour)
        assert [p.index for p in result.predictions] == list(np.argsort(-expected))
        assert result.probability == pytest.approx(expected.max(), rel=1e-5)
    batch = np.random.default_rng(1).normal(size=(7, 3, 12, 10)).astype(np.float32)
    np.testing.assert_allclose(classifier.predict(batch), batch.mean(axis=(2, 3)) @ weights(RGB), atol=1e-5)


def test_a_free_size_takes_other_sizes_in_predict(tmp_path):
    classifier = load(retyped(onnx_network(RGB), "images", ["N", 3, "H", "W"]), tmp_path)
    for size in ((12, 10), (5, 40)):
        batch = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
        np.testing.assert_allclose(classifier.predict(batch), batch.mean(axis=(2, 3)) @ weights(RGB), atol=1e-5)
    with pytest.raises(ConfigurationError, match=r"float32 \(N, 3, H, W\).*\(1, 1, 12, 10\)"):
        classifier.predict(np.zeros((1, 1, 12, 10), np.float32))
    assert classifier.classify(PICTURES[0])[0].probability == pytest.approx(
        probabilities_of(COLOURS[0]).max(), rel=1e-5
    )


def test_half_precision_inputs_and_outputs_are_converted(tmp_path):
    model = onnx_network(RGB)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(RGB).astype(np.float16), "weight"))
    classifier = load(model, tmp_path)
    logits = classifier.predict(np.ones((2, 3, 12, 10), np.float32))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.ones((2, 3)) @ weights(RGB), atol=0.01)


def test_pictures_go_in_as_they_are_where_the_graph_preprocesses(tmp_path):
    classifier = load(network_of_pictures(), tmp_path, batch_size=4)
    sizes = [(10, 12), (31, 7), (10, 12), (1, 1), (10, 12)]
    results = classifier.classify([plain(colour, size) for colour, size in zip(COLOURS, sizes, strict=True)])
    for result, colour in zip(results, COLOURS, strict=True):
        assert result.probability == pytest.approx(probabilities_of(colour).max(), rel=1e-5)
    batch = np.random.default_rng(0).integers(0, 256, (2, 9, 5, 3), np.uint8)
    normal = (batch.mean(axis=(1, 2)) / 255 - RGB.mean) / RGB.std
    np.testing.assert_allclose(classifier.predict(batch), normal @ weights(RGB), atol=1e-4)
    with pytest.raises(ConfigurationError, match=r"uint8 \(N, H, W, 3\), got an array of float32"):
        classifier.predict(batch.astype(np.float32))
    grey = load(network_of_pictures(replace(GREY, preprocessing_in_graph=True)), tmp_path)
    assert grey.classify(plain((77, 77, 77)))[0].probability == pytest.approx(
        probabilities_of((77,), GREY).max(), rel=1e-5
    )


def test_of_a_very_thin_picture_only_the_middle_reaches_the_graph(tmp_path):
    thin = np.zeros((2, 20_000, 3), np.uint8)
    thin[:, 9_900:10_100] = COLOURS[0]
    metadata = replace(IN_GRAPH, input_size=(3, 3000, 3000))
    classifier = load(network_of_pictures(metadata), tmp_path)
    assert classifier.classify(thin)[0].probability == pytest.approx(probabilities_of(COLOURS[0]).max(), rel=1e-5)


def test_networks_made_by_others_work_with_metadata_given(tmp_path):
    model = onnx_network(RGB, batch=1)
    del model.metadata_props[:]
    with pytest.raises(MetadataError, match=r"network\.onnx has no ccnn-zoo metadata"):
        load(model, tmp_path)
    classifier = load(model, tmp_path, metadata=RGB)
    for result, colour in zip(classifier.classify(PICTURES), COLOURS, strict=True):
        assert result.probability == pytest.approx(probabilities_of(colour).max(), rel=1e-5)
    with pytest.raises(MetadataError, match=r"logits: float32 \[1, 6\] for 5 labels.*pass the\s+metadata"):
        load(model, tmp_path, metadata=replace(RGB, labels=RGB.labels[:5]))
    with pytest.raises(MetadataError, match=r"images: float32 \[1, 3, 12, 10\].*\(3, 12, 12\)"):
        load(model, tmp_path, metadata=replace(RGB, input_size=(3, 12, 12)))


def test_given_metadata_count_more_than_the_files_own(tmp_path):
    other = replace(RGB, labels=tuple("abcdef"))
    path = save_network(tmp_path / "own.onnx")
    ours, given = (runtime.load(path, device="cpu", metadata=m).classify(PICTURES[0])[0] for m in (None, other))
    assert given.label == "abcdef"[RGB.labels.index(ours.label)]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (["N", 12, 10, 3], TensorProto.FLOAT, r"\['N', 12, 10, 3\].*\(N, C, H, W\)"),
        (["N", 3, 12], TensorProto.FLOAT, r"\['N', 3, 12\]"),
        (None, TensorProto.FLOAT, "unknown rank"),
        (["N", 3, 12, 10], TensorProto.DOUBLE, "element type 11"),
        (["N", 3, 12, 10], TensorProto.UINT8, "uint8"),
    ],
    ids=["nhwc", "rank 3", "unknown rank", "double", "uint8"],
)
def test_inputs_that_pictures_do_not_fit_are_named(tmp_path, shape, dtype, message):
    model = onnx_network(RGB)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", dtype, shape))
    with pytest.raises(MetadataError, match=rf"network\.onnx takes \(images: .*{message}"):
        load(model, tmp_path)


def test_weights_listed_as_inputs_are_none(tmp_path):
    model = onnx_network(RGB)
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 6]))
    assert load(model, tmp_path).classify(PICTURES[0])[0].error is None


def test_a_second_input_is_refused(tmp_path):
    model = onnx_network(RGB)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N"]))
    with pytest.raises(MetadataError, match=r"images: .*, mask: float32 \['N'\]"):
        load(model, tmp_path)


def test_a_network_that_gives_other_shapes_than_it_says_is_reported(tmp_path):
    model = onnx_network(RGB)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "classes"]))
    del model.metadata_props[:]
    classifier = load(model, tmp_path, metadata=replace(RGB, labels=RGB.labels[:4]))
    with pytest.raises(IntegrityError, match=r"logits of shape \(1, 6\).* 4 labels"):
        classifier.classify(PICTURES[0])
