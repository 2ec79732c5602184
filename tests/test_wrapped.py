"""Networks that are compiled, averaged or spread over devices: seen through, or named with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
from timm.utils import ModelEma, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ccnn_zoo
from ccnn_zoo import hub
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.detection import create_detector, load_detector, save_detector
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.export import detector_to_onnx, metadata_of, to_onnx

SMALL = {"layers": (1, 1, 1, 1), "branches": 2}
TEN = [f"kind {number}" for number in range(10)]
RECORD = TrainingRecord("none", 0, 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("ccnn_resnet18_cifar", **SMALL).eval()


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(16, 16, 32, 64), num_classes=10)


def as_a_whole(model: nn.Module) -> nn.Module:
    return torch.compile(model)


def in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def in_part(model: nn.Module) -> nn.Module:
    model.layer1 = torch.compile(model.layer1)
    model.layer2.compile()
    return model


def its_forward(model: nn.Module) -> nn.Module:
    model.layer1.forward = torch.compile(model.layer1.forward)
    return model


COMPILED = [as_a_whole, in_place, in_part, its_forward]


@pytest.fixture
def no_compiler(monkeypatch):
    """Nothing may be compiled: that takes minutes, and what is checked is how Python runs the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was compiled")

    monkeypatch.setattr("torch._dynamo.convert_frame._compile", refuse)


def same(one: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return torch.equal(one(images), other(images))


@pytest.mark.parametrize("compiled", COMPILED)
def test_compiled_networks_are_folded_calibrated_and_saved_as_they_are_in_python(tmp_path, no_compiler, compiled):
    expected = ccnn_zoo.fold(network())
    folded = ccnn_zoo.fold(compiled(network()))
    assert same(folded, expected)
    assert list(folded.state_dict()) == list(expected.state_dict())
    calibrated, expected = ccnn_zoo.calibrate(compiled(plain_network()), 2), ccnn_zoo.calibrate(plain_network(), 2)
    assert list(calibrated.state_dict()) == list(expected.state_dict())
    assert same(calibrated.eval(), expected.eval())
    save_checkpoint(tmp_path / "x.safetensors", compiled(network()), RECORD)
    assert same(load_checkpoint(tmp_path / "x.safetensors")[0], network())


@pytest.mark.parametrize("compiled", [as_a_whole, in_part])
def test_a_compiled_network_is_exported_as_the_one_in_it(tmp_path, compiled):
    to_onnx(compiled(network()), tmp_path / "compiled.onnx", labels=TEN)
    to_onnx(network(), tmp_path / "plain.onnx", labels=TEN)
    images = {"image": torch.randn(2, 3, 32, 32).numpy()}
    one, other = (ort.InferenceSession(tmp_path / f"{name}.onnx").run(None, images) for name in ("compiled", "plain"))
    np.testing.assert_array_equal(one, other)


def test_what_is_compiled_stays_compiled_and_shares_its_weights():
    model = in_part(network())
    ccnn_zoo.fold(model)
    assert "layer1._orig_mod.0.conv1.weight" in model.state_dict()
    assert model.layer2._compiled_call_impl is not None


def test_a_compiled_network_is_published_as_the_one_in_it(tmp_path, no_compiler):
    model = network()
    model.pretrained_cfg["label_names"] = TEN
    with pytest.raises(ConfigurationError, match=r"AveragedModel wraps the network: pass \.module"):
        hub.publish(AveragedModel(model), f"local:{tmp_path / 'hub'}", record=RECORD)
    hub.publish(torch.compile(model), f"local:{tmp_path / 'hub'}", record=RECORD)
    folder = hub.download(f"local:{tmp_path / 'hub'}")
    assert same(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), network())


DOORS = {
    "to_onnx": lambda model, path: to_onnx(model, path / "x.onnx", labels=TEN),
    "detector_to_onnx": lambda model, path: detector_to_onnx(model, path / "x.onnx"),
    "metadata_of": lambda model, path: metadata_of(model, TEN),
    "calibrate": lambda model, path: ccnn_zoo.calibrate(model, 2),
    "fold": lambda model, path: ccnn_zoo.fold(model),
    "save_checkpoint": lambda model, path: save_checkpoint(path / "x.safetensors", model, RECORD),
    "save_detector": lambda model, path: save_detector(path / "x.safetensors", model, RECORD),
}


def fully_sharded(model: nn.Module) -> nn.Module:
    """As torch's fully_shard leaves one: of another class, in place."""
    marker = type("FSDPModule", (), {})
    model.__class__ = type("FSDPResNet", (marker, type(model)), {})
    return model


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_every_door_names_a_wrapper_and_the_remedy(tmp_path, door):
    with pytest.raises(ConfigurationError, match=r"DataParallel wraps the network: pass \.module"):
        door(nn.DataParallel(network()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (AveragedModel, r"AveragedModel wraps the network: pass \.module"),
        (ModelEmaV3, r"ModelEmaV3 wraps the network: pass \.module"),
        (ModelEma, r"ModelEma wraps the network: pass \.ema"),
        (lambda model: torch.compile(AveragedModel(model)), r"AveragedModel wraps the network: pass \.module"),
        (fully_sharded, "gather its weights"),
        (lambda model: torch.jit.script(nn.ReLU()), "before torch.jit"),
        (lambda model: "resnet18", "expected a network, a torch.nn.Module, got str"),
    ],
)
def test_wrappers_are_named_with_the_remedy(wrap, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        ccnn_zoo.fold(wrap(network()))


def test_a_real_ddp_is_named(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ConfigurationError, match=r"DistributedDataParallel wraps the network: pass \.module"):
        ccnn_zoo.fold(wrapped)


@contextmanager
def float64_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable] = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": float64_default,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_what_is_set_around_an_export_does_not_matter(tmp_path, setting):
    model, plain = network(), plain_network()
    with setting():
        to_onnx(model, tmp_path / "x.onnx", labels=TEN)
        folded, calibrated = ccnn_zoo.fold(model), ccnn_zoo.calibrate(plain, 2)
    images = torch.randn(2, 3, 32, 32)
    (logits,) = ort.InferenceSession(tmp_path / "x.onnx").run(None, {"image": images.numpy()})
    np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-4)
    for made in (folded, calibrated):
        made.train()(torch.randn(2, 3, 32, 32)).sum().backward()  # ordinary tensors, which learn
        assert {p.dtype for p in made.parameters()} == {torch.float32}


def test_a_network_that_was_made_in_inference_mode_is_exported(tmp_path):
    with torch.inference_mode():
        model = network()
        to_onnx(model, tmp_path / "x.onnx", labels=TEN)


def test_a_compiled_detector_is_saved_as_the_one_in_it(tmp_path, no_compiler):
    detector = create_detector("ccnn_resnet18_cifar", num_classes=2, labels=("a", "b"), backbone_kwargs=SMALL)
    save_detector(tmp_path / "x.safetensors", torch.compile(detector), RECORD)
    loaded, _ = load_detector(tmp_path / "x.safetensors")
    assert list(loaded.state_dict()) == list(detector.state_dict())
