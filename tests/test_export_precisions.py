"""fp16 and int8: the network in another arithmetic, by the judgement of onnx's reference evaluator and by hand."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ccnn_zoo import export, hub, runtime
from ccnn_zoo.errors import ConfigurationError, ExportError, RepositoryError
from ccnn_zoo.export._convert import convert
from ccnn_zoo.export._fp16 import emulate, to_half
from ccnn_zoo.train import evaluation_batches, load_data

CFG = {
    "architecture": "small",
    "input_size": (1, 8, 8),
    "mean": (0.3,),
    "std": (0.25,),
    "label_names": [f"digit {i}" for i in range(10)],
}


class Scaled(nn.Module):
    """Three convolutions, of which the first makes values ``scale`` times larger and the second smaller again."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pretrained_cfg = CFG
        self.num_classes = 10
        self.first, self.second, self.third = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)
        self.first.weight.data.mul_(scale)
        self.first.bias.data.mul_(scale)
        self.second.weight.data.div_(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.fc(self.third(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def thin() -> nn.Module:
    """The paper's thin ResNet of one block a stage, K=2, its statistics those of noise."""
    torch.manual_seed(2)
    model = timm.create_model(
        "ccnn_resnet18_cifar", branches=2, in_chans=1, layers=(1, 1, 1, 1), pretrained_cfg_overlay=CFG
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    model.train()
    for seed in range(30):  # statistics as training leaves them, so that the logits depend on the image
        model(pictures(16, seed=100 + seed))
    model.eval()
    # No class is ahead on every image.
    model.fc.bias.data -= torch.from_numpy(logits_of(model, pictures(100, seed=2)).mean(0))
    return model


@pytest.fixture(scope="module")
def folder(thin, tmp_path_factory) -> tuple[Path, dict[str, export.ExportReport]]:
    """The thin network in all precisions; of the labels every fifth is wrong."""
    folder = tmp_path_factory.mktemp("precisions")
    images = pictures(60)
    targets = logits_of(thin, images).argmax(1)
    assert len(set(targets)) > 4
    targets[::5] = (targets[::5] + 1) % 10
    labelled = [(images[:33], torch.tensor(targets[:33])), (images[33:], torch.tensor(targets[33:]))]
    reports = export.to_folder(
        thin, folder, ["fp32", "fp16", "int8"], images=labelled, int8_images=pictures(100, seed=1), branch_outputs=True
    )
    return folder, reports


def pictures(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> np.ndarray:
    return model(images).numpy()


def kinds_of(path: Path) -> dict[int, int]:
    """Return how many weights a file stores of each element type."""
    kinds: dict[int, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        kinds[tensor.data_type] = kinds.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    return kinds


def test_every_precision_has_the_name_that_the_hub_gives_it(folder):
    place, reports = folder
    assert export.FILES == hub.PRECISIONS
    assert {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} == set(export.FILES.values())
    assert {name: report.path for name, report in reports.items()} == {n: place / f for n, f in export.FILES.items()}
    sizes = [report.file_size for report in reports.values()]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.5 * sizes[0]


# Of int8 0.25 on processors with VNNI. Without it onnxruntime adds products in 16 bits, which overflow: 0.31 was seen.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8", 0.4)])
def test_the_runtime_runs_every_precision_as_it_is(thin, folder, precision, tolerance):
    place, reports = folder
    images = pictures(60)
    expected = logits_of(thin, images)
    logits = runtime.load(place / export.FILES[precision], device="cpu").predict(images.numpy())
    difference = np.abs(logits - expected)
    assert 1e-5 < difference.max() < tolerance * np.abs(expected).max()
    if precision == "int8":  # of fp16 the report tells what a device with halves gives
        assert reports[precision].agreement == np.mean(logits.argmax(1) == expected.argmax(1))
        assert reports[precision].max_difference == pytest.approx(difference[:32].max(), rel=1e-3)


def test_accuracy_is_counted_against_the_classes_that_come_with_the_images(folder):
    _, reports = folder
    for report in reports.values():
        assert (report.images, report.torch_accuracy) == (60, 80)
        assert report.accuracy_loss == pytest.approx(80 - report.accuracy)
    assert (reports["fp32"].agreement, reports["fp32"].accuracy) == (1, 80)
    assert reports["int8"].int8_images == 100


def test_halves_are_stored_and_the_reference_evaluator_agrees(thin, folder):
    place, reports = folder
    assert set(kinds_of(place / export.FILES["fp16"])) == {TensorProto.FLOAT16, TensorProto.INT64}
    images = pictures(5)
    reference = ReferenceEvaluator(str(place / export.FILES["fp16"])).run(["logits"], {"image": images.numpy()})[0]
    expected = logits_of(thin, images)
    assert reference.dtype == np.float32
    assert 1e-5 < np.abs(reference - expected).max() < export.HALF_TOLERANCE * np.abs(expected).max()
    assert reports["fp16"].kept_fp32 == {}


def test_what_overflows_stays_in_single_precision(tmp_path):
    model = Scaled(1e5).eval()
    report = export.to_onnx(model, tmp_path / "x.onnx", precision="fp16")
    assert set(report.kept_fp32.values()) == {"overflows"}
    assert len(report.kept_fp32) == 3  # the convolution that makes large values, and the two nodes that read them
    halves = kinds_of(tmp_path / "x.onnx")
    assert halves[TensorProto.FLOAT] == 8 * 9 + 8 + 8 * 8 * 9 + 8  # the first two convolutions
    assert halves[TensorProto.FLOAT16] == 8 * 8 * 9 + 8 + 8 * 10 + 10
    images = pictures(4).numpy()
    expected = logits_of(model, torch.from_numpy(images))
    found = ReferenceEvaluator(str(tmp_path / "x.onnx")).run(["logits"], {"image": images})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=export.HALF_TOLERANCE * np.abs(expected).max())
    core = convert(model, export.metadata_of(model), 18)
    with np.errstate(all="ignore"):
        everything_half = ReferenceEvaluator(to_half(core, ())).run(["logits"], {"image": images})[0]
    assert not np.isfinite(everything_half).all()


def test_what_loses_accuracy_stays_in_single_precision(tmp_path):
    model = Scaled(1e-7).eval()  # its first weights are below the smallest half
    report = export.to_onnx(model, tmp_path / "x.onnx", precision="fp16")
    assert report.kept_fp32
    assert "loses accuracy" in report.kept_fp32.values()
    images = pictures(4).numpy()
    expected = logits_of(model, torch.from_numpy(images))
    found = ReferenceEvaluator(str(tmp_path / "x.onnx")).run(["logits"], {"image": images})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=export.HALF_TOLERANCE * np.abs(expected).max())


def test_the_check_sees_overflow_as_a_gpu_would_and_a_cpu_does_not():
    model = Scaled(1e5).eval()
    core = convert(model, export.metadata_of(model), 18)
    images = {"image": pictures(4).numpy()}

    def run(graph: onnx.ModelProto) -> np.ndarray:
        import onnxruntime as ort

        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(["logits"], images)[0]

    assert np.isfinite(run(to_half(core, ()))).all()  # the CPU provider leaves the rounding out
    assert not np.isfinite(run(emulate(core, ()))).all()
    kept = {node.name for node in core.graph.node}
    np.testing.assert_array_equal(run(emulate(core, kept)), run(core))


def test_int8_is_qdq_per_channel_with_ranges_of_the_given_images(folder):
    place, reports = folder
    graph = onnx.load(place / export.FILES["int8"]).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 12
    for node in convolutions:
        image, weight = (made_by[name] for name in node.input[:2])
        assert (image.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        values, scale, zero = (stored[name] for name in weight.input)
        assert (values.dtype, scale.shape, zero.any()) == (np.int8, (values.shape[0],), False)
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
    given = pictures(100, seed=1).numpy()
    scale, zero = (stored[name] for name in first.input[1:])
    assert scale == pytest.approx((given.max() - given.min()) / 255, rel=1e-5)
    assert (zero.dtype, int(zero)) == (np.uint8, round(float(-given.min() / scale)))
    assert reports["int8"].nodes["Conv"] == 12


class EndsInConvolution(Scaled):
    """As timm's ResNetV2 and DPN end."""

    def __init__(self) -> None:
        super().__init__(1)
        self.fc = nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)


def test_logits_of_int8_do_not_come_in_steps_where_a_convolution_makes_them(tmp_path):
    report = export.to_onnx(
        EndsInConvolution().eval(), tmp_path / "x.onnx", precision="int8", int8_images=pictures(100, seed=1)
    )
    logits = runtime.load(report.path, device="cpu").predict(pictures(200).numpy())
    assert len(np.unique(logits)) > 1000  # of 2000; a quantised output has 256


def test_one_file_that_fails_leaves_none_and_keeps_the_old(thin, tmp_path):
    old = tmp_path / export.FILES["fp32"]
    old.parent.mkdir()
    old.write_bytes(b"old")
    too_dark = 1e-3 * pictures(20)  # their range clips every real image
    with pytest.raises(ExportError, match=r"differs from the network by .* of their spread .*allowed in int8"):
        export.to_folder(thin, tmp_path, ["fp32", "int8"], images=pictures(20), int8_images=too_dark)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [old]
    assert old.read_bytes() == b"old"


def test_a_file_in_whose_place_a_folder_stands_is_refused_before_the_others_are_replaced(thin, tmp_path):
    old = tmp_path / export.FILES["fp32"]
    (tmp_path / export.FILES["fp16"]).mkdir(parents=True)
    old.write_bytes(b"old")
    with pytest.raises(RepositoryError, match=r"model_fp16\.onnx is a folder"):
        export.to_folder(thin, tmp_path, ["fp32", "fp16"])
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (lambda: pictures(1), "on one image:"),
        (lambda: torch.zeros(20, 1, 8, 8), "on 20 images that do not differ"),
        (lambda: pictures(20), None),
    ],
)
def test_ranges_of_one_image_or_of_none_to_speak_of_are_warned_of(tmp_path, images, told):
    with warnings.catch_warnings(record=True) as caught, suppress(ExportError):
        warnings.simplefilter("always", UserWarning)
        export.to_onnx(Scaled(1).eval(), tmp_path / "x.onnx", precision="int8", int8_images=images())
    said = [str(each.message) for each in caught if "int8's ranges are measured" in str(each.message)]
    assert [told in each for each in said] == [True] * (told is not None)


def test_int8_that_loses_accuracy_is_refused(thin, tmp_path):
    images = pictures(400, seed=3)
    coarse = 2 * pictures(20)  # twice too wide a range: a bit is lost
    classes = torch.tensor(logits_of(thin, images).argmax(1))
    report = export.to_onnx(thin, tmp_path / "x.onnx", precision="int8", images=images, int8_images=coarse)
    assert 0.5 < report.agreement < 0.97
    labelled = [(images, classes)]
    with pytest.raises(ExportError, match=r"int8 loses \d+\.\d\d points of accuracy on 400 images"):
        export.to_onnx(thin, tmp_path / "y.onnx", precision="int8", images=labelled, int8_images=coarse)
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "int8 needs real images to measure ranges on: pass int8_images"),
        ({"precision": "int8", "int8_images": []}, "int8_images is empty"),
        ({"precision": "int8", "int8_images": torch.zeros(3, 1, 9, 9)}, r"int8_images\[0\] has shape"),
        ({"precision": "bf16"}, "precision must be one of fp32, fp16, int8, got 'bf16'"),
        ({"batch": 0}, "batch must be an integer of at least 1, or None for any, got 0"),
        ({"size": (8, 0)}, r"size must be \(height, width\), 'any' or None, got \(8, 0\)"),
        ({"size": "any", "preprocess": True}, "resizes every picture to one size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_exported_is_refused_at_once(tmp_path, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        export.to_onnx(Scaled(1).eval(), tmp_path / "x.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_the_report_is_json_and_a_table(folder, tmp_path):
    _, reports = folder
    reports["int8"].save(tmp_path / "int8.json")
    read = json.loads((tmp_path / "int8.json").read_text())
    assert [d["batch_size"] for d in read["differences"]] == [1, 3, 32]
    assert read["nodes"] == reports["int8"].nodes
    assert (read["precision"], read["images"], read["accuracy_loss"]) == ("int8", 60, reports["int8"].accuracy_loss)
    table = dict(reports["fp16"].rows())
    assert table["same class as torch"].endswith("of 60 images")
    assert table["nodes left in single precision"] == "none"
    assert "difference to torch, branch by branch" in table


def test_int8_and_fp16_keep_the_accuracy_of_a_trained_network_on_real_digits(tmp_path, real_data):
    model = timm.create_model("ccnn_resnet18_cifar.mnist", pretrained=True)
    data = load_data(f"mnist:{real_data}")
    images = list(islice(evaluation_batches(data), 2))
    spread = np.linspace(0, len(data.train) - 1, 512).astype(np.int64)
    measured = evaluation_batches(replace(data, test=data.train.subset(spread)))
    reports = export.to_folder(model, tmp_path, ["fp16", "int8"], images=images, int8_images=measured)
    assert reports["int8"].int8_images == 512
    for report in reports.values():
        assert report.images == 256
        assert report.torch_accuracy > 96
        assert report.accuracy_loss <= export.INT8_LOSS
