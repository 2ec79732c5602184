"""Forms of the exported file: preprocessing inside, fixed and open shapes, separate convolutions, what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import ModelProto, TensorProto, helper
from PIL import Image
from torch import nn

from ccnn_zoo import export, fold, runtime
from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.export._convert import convert
from ccnn_zoo.export._measure import Timer, choose_fp32, choose_int8
from ccnn_zoo.export._preprocess import with_preprocessing
from ccnn_zoo.export._quantize import Quantizer
from ccnn_zoo.export._separate import grouped_convolutions, separate
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.runtime._preprocess import preprocess


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """timm's own ResNet-18, without any calibration, on small images."""
    torch.manual_seed(0)
    overlay = {"input_size": (3, 48, 48), "crop_pct": 0.9}
    arguments = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 64), "num_classes": 1000}
    model = timm.create_model("resnet18", **arguments, pretrained_cfg_overlay=overlay)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def session_of(source: Path | ModelProto) -> ort.InferenceSession:
    content = source.SerializeToString() if isinstance(source, ModelProto) else source
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_a_plain_timm_network_takes_pictures_and_every_precision(plain, tmp_path):
    training = torch.randn(32, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    reports = export.to_folder(plain, tmp_path, export.FILES, int8_images=training, preprocess=True)
    assert [report.preprocessing.maximum <= 1.01 for report in reports.values()] == [True] * 3
    assert runtime.load(reports["fp32"].path, device="cpu").metadata.preprocessing_in_graph
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
    rng = np.random.default_rng(0)
    for size in ((48, 48), (80, 61), (33, 200)):
        smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
        with torch.no_grad():
            expected = plain(transform(smooth)[None]).numpy()
        spread = np.abs(expected - expected.mean()).max()
        for precision, share in (("fp32", 0.02), ("fp16", 0.03), ("int8", 0.5)):
            session = session_of(reports[precision].path)
            assert (session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]) == (
                "tensor(uint8)",
                ["height", "width", 3],
            )
            (logits,) = session.run(["logits"], {"image": np.asarray(smooth)[None].repeat(2, 0)})
            assert np.abs(logits - expected).max() < share * spread


def identity() -> ModelProto:
    """A graph whose logits are its image."""
    image, logits = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, 224, 224]) for n in ("image", "logits")
    )
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"], "i")], "identity", [image], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    "settings",
    [
        {"interpolation": "bicubic", "crop_pct": 0.95},
        {"interpolation": "bicubic", "crop_pct": 1.0},  # with the edges
        {"interpolation": "bilinear", "crop_pct": 1.0},
        {"interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "squash"},
    ],
    ids=str,
)
def test_preprocessing_in_the_graph_is_the_runtimes_on_photographs(settings, real_data):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    metadata = ModelMetadata("x", 1, ("a",), (3, 224, 224), mean, std, **settings)
    session = session_of(with_preprocessing(identity(), metadata))
    files = sorted(real_data.glob("imagenet-sample/*.JPEG"))[::10]
    assert len(files) == 10
    for path in files:
        picture = Image.open(path).convert("RGB")
        found = session.run(["logits"], {"image": np.asarray(picture)[None]})[0][0]
        levels = np.abs(found - preprocess(picture, metadata)) * 255 * np.float32(std)[:, None, None]
        assert levels.max() < 1.01
        assert levels.mean() < 0.1  # that many values are rounded the other way


def test_preprocessing_that_onnx_cannot_do_is_refused(plain, tmp_path):
    plain.pretrained_cfg["interpolation"], before = "lanczos", plain.pretrained_cfg["interpolation"]
    try:
        with pytest.raises(ConfigurationError, match=r"does bilinear and bicubic resizing .* the network's is lanczos"):
            export.to_onnx(plain, tmp_path / "x.onnx", preprocess=True)
    finally:
        plain.pretrained_cfg["interpolation"] = before


def test_batch_and_size_are_fixed_or_open_as_asked(plain, tmp_path):
    image = np.random.default_rng(0).normal(size=(4, 3, 64, 80)).astype(np.float32)
    with torch.no_grad():
        expected = plain(torch.from_numpy(image)).numpy()
    fixed = export.to_onnx(plain, tmp_path / "fixed.onnx", batch=4, size=(64, 80), precision="fp16")
    assert [difference.batch_size for difference in fixed.differences] == [4]
    session = session_of(tmp_path / "fixed.onnx")
    assert (session.get_inputs()[0].shape, session.get_outputs()[0].shape) == ([4, 3, 64, 80], [4, 1000])
    tolerance = 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, rtol=0, atol=tolerance)
    assert runtime.load(tmp_path / "fixed.onnx", device="cpu").metadata.input_size == (3, 64, 80)
    export.to_onnx(plain, tmp_path / "any.onnx", size="any")
    session = session_of(tmp_path / "any.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, rtol=0, atol=1e-3)


def test_a_network_of_one_size_alone_is_no_network_of_any_size(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    model.pretrained_cfg = {"architecture": "flat", "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ExportError, match=r"size='any': the network cannot run images of \(1, 40, 72\)"):
        export.to_onnx(model, tmp_path / "x.onnx", size="any", labels=["a", "b"])


@pytest.fixture(scope="module")
def grouped() -> tuple[ModelProto, np.ndarray, np.ndarray]:
    """The graph of a network of four branches, images, and its logits by torch."""
    torch.manual_seed(0)
    overlay = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "label_names": list("abcdefghij")}
    model = timm.create_model(
        "ccnn_resnet18_cifar", branches=4, in_chans=1, layers=(1, 1, 1, 1), pretrained_cfg_overlay=overlay
    ).eval()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        return convert(fold(model), export.metadata_of(model), 18), images.numpy(), model(images).numpy()


def count(model: ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def test_separate_convolutions_are_the_grouped_one(grouped):
    graph, images, expected = grouped
    kinds = grouped_convolutions(graph)
    names = {name for of_kind in kinds.values() for name in of_kind}
    assert len(names) == 11  # all but the first, which reads the image once
    one = separate(graph, list(names)[:1])
    assert (count(one, "Conv"), count(one, "Split") - count(graph, "Split")) == (12 + 3, 1)
    apart = separate(graph, names)
    assert count(apart, "Conv") == 1 + 4 * 11
    onnx.checker.check_model(apart, full_check=True)
    assert not grouped_convolutions(apart)
    np.testing.assert_allclose(session_of(apart).run(["logits"], {"image": images})[0], expected, rtol=0, atol=1e-5)
    assert not {tensor.name for tensor in apart.graph.initializer} & {
        node.input[1] for node in graph.graph.node if node.name in names
    }


def timed(told: dict[str, float], others: float = 1) -> Timer:
    """A clock that says what it is told: seconds of a graph by its name."""

    def measure(graphs: Mapping[str, ModelProto]) -> dict[str, float]:
        return {name: told.get(name, others) for name in graphs}

    return measure


def test_grouped_convolutions_are_replaced_where_that_was_measured_faster(grouped):
    graph, images, expected = grouped
    unchanged, timing = choose_fp32(graph, timed({}), 8, 4)
    assert (count(unchanged, "Conv"), timing.separated, timing.apart, timing.slower) == (12, (), False, ())
    first = "64x16x3x3 in 4 groups, stride 1x1"
    partly, timing = choose_fp32(graph, timed({first: 0.9, "faster kinds": 0.9}), 8, 4)
    assert (timing.separated, timing.apart) == ((first,), False)
    assert count(partly, "Conv") > 12
    assert grouped_convolutions(partly).keys() < grouped_convolutions(graph).keys()
    apart, timing = choose_fp32(graph, timed({"fp32 apart": 0.9, first: 0.95, "faster kinds": 0.95}), 8, 4)
    assert (count(apart, "Conv"), timing.separated, timing.apart) == (4 * 12, (), True)
    for model in (partly, apart):
        (logits,) = session_of(model).run(["logits"], {"image": images})
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    _, timing = choose_fp32(graph, timed({"fp32 apart": 1.2}), 8, 4)
    assert timing.slower == ("fp32 apart takes 1.20 times the time of fp32",)
    # A kind that seemed faster alone, and is not when all is measured again, stays.
    unchanged, timing = choose_fp32(graph, timed({first: 0.9}), 8, 4)
    assert (count(unchanged, "Conv"), timing.separated) == (12, ())


def test_int8_stays_only_where_it_was_measured_faster(grouped):
    graph, images, expected = grouped

    def quantizer_of(given: ModelProto) -> Quantizer:
        return Quantizer(given, torch.from_numpy(images))

    def in_float(model: ModelProto) -> int:
        made = {name: node.op_type for node in model.graph.node for name in node.output}
        return sum(made.get(n.input[1]) != "DequantizeLinear" for n in model.graph.node if n.op_type == "Conv")

    everything, timing = choose_int8(graph, quantizer_of, timed({"fp32": 1}, others=1.5), 8, 4)
    assert (in_float(everything), timing.kept_fp32, timing.separated) == (0, (), ())
    assert "int8 takes 1.50 times the time of fp32" in timing.slower
    narrow = "64x16x3x3 in 4 groups, stride 1x1"
    mixed, timing = choose_int8(graph, quantizer_of, timed({narrow: 0.5, "mixed": 0.5}), 8, 4)
    assert (timing.kept_fp32, in_float(mixed), count(mixed, "Conv")) == ((narrow,), 3, 12)
    apart, timing = choose_int8(graph, quantizer_of, timed({"int8 apart": 0.5, narrow: 0.4, "mixed": 0.4}), 8, 4)
    assert (timing.kept_fp32, in_float(apart), count(apart, "Conv")) == ((narrow,), 4 * 3, 4 * 12)
    assert (timing.apart, timing.separated, timing.milliseconds["chosen"]) == (True, (), 400)
    # As if it were a plain network of four groups.
    separated, timing = choose_int8(graph, quantizer_of, timed({"int8 separate": 0.5, narrow: 0.4, "mixed": 0.4}), 8, 1)
    assert (timing.kept_fp32, in_float(separated), count(separated, "Conv")) == ((narrow,), 4 * 3, 1 + 4 * 11)
    assert narrow in timing.separated
    assert not timing.apart
    # Five branches do not divide the groups of four: nothing comes apart, and separate convolutions are tried.
    _, timing = choose_int8(graph, quantizer_of, timed({"int8 separate": 0.5}), 8, 5)
    assert (timing.apart, narrow in timing.separated) == (False, True)
    for model in (mixed, apart, separated):
        (logits,) = session_of(model).run(["logits"], {"image": images})
        assert np.abs(logits - expected).max() < 0.3 * np.abs(expected).max()


def test_measuring_times_every_form_and_the_file_is_checked_as_ever(tmp_path):
    overlay = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "label_names": list("abcdefghij")}
    torch.manual_seed(0)
    model = timm.create_model(
        "ccnn_resnet18_cifar", branches=2, in_chans=1, layers=(1, 1, 1, 1), pretrained_cfg_overlay=overlay
    )
    training = torch.randn(16, 1, 8, 8)
    report = export.to_onnx(model, tmp_path / "x.onnx", precision="int8", int8_images=training, measure=True)
    assert report.timing.milliseconds.keys() >= {"fp32", "int8", "int8 apart", "chosen"}
    assert min(report.timing.milliseconds.values()) > 0
    assert any(what.startswith("ms for 8 images") for what, _ in report.rows())
    single = export.to_onnx(model, tmp_path / "y.onnx", batch=1, measure=True)
    assert single.timing.milliseconds.keys() >= {"fp32", "fp32 apart", "chosen"}
    assert single.timing.batch_size == 1
    assert single.max_difference < export.TOLERANCE
