"""``mirrored``: branches that see the image with left and right exchanged, in layers, networks and ensembles."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
import torch.nn.functional as F
from forks import ccnn
from made_once import made_once
from separate_networks import randomize
from torch import Tensor, nn

import ccnn_zoo
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.convert import chosen_branches
from ccnn_zoo.detection import create_detector
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.export import to_onnx
from ccnn_zoo.hub._card_kind import kind_of
from ccnn_zoo.train import Recipe, load_data, train

THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
GEOMETRIES = [{}, {"stride": 2, "padding": 1}, {"padding": (0, 2), "bias": True}, {"dilation": 2, "stride": (1, 2)}]


def in_the_mirror(images: Tensor) -> Tensor:
    """Left and right exchanged, by numpy."""
    return torch.from_numpy(np.ascontiguousarray(images.numpy()[..., ::-1]))


def pictures(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def plain(seed: int = 0, name: str = "ccnn_resnet18_cifar", **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    if name.startswith("ccnn_"):
        kwargs = {**THIN, "branches": 1, **kwargs}
    return randomize(timm.create_model(name, **{"num_classes": 5, **kwargs}), seed).eval()


def calibrated(branches: int, mirrored: list[int], **kwargs: object) -> nn.Module:
    return plain(branches=branches, mirrored=mirrored, **kwargs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mirrored", [[0], [1], [0, 2]])
def test_a_layer_convolves_what_each_branch_sees(geometry, mirrored):
    conv = ccnn_zoo.CalibratedConv2d(3, 4, 3, branches=3, shared_input=True, mirrored=mirrored, **geometry)
    images = pictures(9)
    how = {name: value for name, value in geometry.items() if name != "bias"}
    seen = [in_the_mirror(images) if k in mirrored else images for k in range(3)]
    apart = [F.conv2d(x, R * conv.weight, conv.bias, **how) for x, R in zip(seen, conv.calibration, strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(conv(images), torch.cat(apart, 1))
        assert torch.equal(conv.fuse()(images), conv(images))
        for either in (conv, conv.fuse()):
            assert torch.equal(torch.jit.script(either)(images), conv(images))


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenetv3_small_050", "ccnn_resnet18_cifar"])
def test_a_network_that_one_has_gives_the_mean_of_an_image_and_its_mirror_image(name):
    alone, images = plain(name=name), pictures(64)
    both = ccnn_zoo.calibrate(alone, branches=2, mirrored=[1])
    with torch.no_grad():
        separate = [alone(images), alone(in_the_mirror(images))]
        assert (separate[0] - separate[1]).abs().max() > 1e-3
        torch.testing.assert_close(both(images), sum(separate) / 2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both.forward_branches(images), torch.stack(separate), rtol=1e-4, atol=1e-5)
        assert torch.equal(ccnn_zoo.fold(both)(images), both(images))


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])  # the image is read by one convolution, and by two
def test_one_branch_may_see_the_mirror_image_alone(name, tmp_path):
    alone, images = plain(name=name), pictures()
    mirrored = ccnn_zoo.calibrate(alone, branches=1, mirrored=[0])
    save_checkpoint(tmp_path / "one.safetensors", mirrored, TrainingRecord("pictures", 0, 1))
    with torch.no_grad():
        wanted = alone(in_the_mirror(images))
        torch.testing.assert_close(mirrored(images), wanted, rtol=1e-4, atol=1e-5)
        again, _ = load_checkpoint(tmp_path / "one.safetensors")
        torch.testing.assert_close(again(images), wanted, rtol=1e-4, atol=1e-5)


def test_branches_of_different_kernels_say_alone_what_they_say_together():
    network, images = calibrated(3, [1]), pictures()
    with torch.no_grad():
        together, logits = network.forward_branches(images), network(images)
        assert torch.equal(ccnn_zoo.fold(network)(images), logits)
        for k in range(3):  # the plain network with H_k, on what branch k sees
            alone = plain()
            state = dict(network.state_dict())
            for key, module in network.named_modules():
                if isinstance(module, ccnn_zoo.CalibratedConv2d):
                    state[f"{key}.weight"] = module.calibration[k] * module.weight
                    state[f"{key}.calibration"] = torch.ones_like(module.calibration[:1])
            shapes = {key: tensor.shape for key, tensor in alone.state_dict().items()}
            state = {n: t if t.shape == shapes[n] else t.chunk(3)[k] for n, t in state.items()}
            alone.load_state_dict(state)
            seen = in_the_mirror(images) if k == 1 else images
            torch.testing.assert_close(alone(seen), together[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ccnn_zoo.split(network)(images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [[0], [1], [2, 1], [0, 2]])
def test_some_of_the_branches_see_what_they_saw(chosen):
    network, images = calibrated(3, [1]), pictures()
    part = chosen_branches(network, chosen)
    with torch.no_grad():
        wanted = network.forward_branches(images)[chosen].mean(0)
        torch.testing.assert_close(part(images), wanted, rtol=1e-4, atol=1e-5)
    assert part.conversion.mirrored == tuple(new for new, old in enumerate(chosen) if old == 1)
    assert (type(part.conv1) is nn.Conv2d) == (1 not in chosen)


def test_few_branches_at_a_time_train_as_all_at_once():
    network = calibrated(5, [1, 4]).train()
    other, images = copy.deepcopy(network), pictures()
    for each, model in ((network, network), (other, Branchwise(other, at_once=2))):
        logits = model(images)
        logits.square().sum().backward()
        each.logits = logits.detach()
    torch.testing.assert_close(network.logits, other.logits)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("members", [1, 2])
def test_an_ensemble_of_networks_and_mirror_images_is_saved_and_exported(members, tmp_path):
    alone, images = [plain(seed) for seed in range(members)], pictures()
    together = ccnn_zoo.deep_ensemble(alone, mirrored=True)
    save_checkpoint(tmp_path / "all.safetensors", together, TrainingRecord("pictures", 0, 1))
    again, _ = load_checkpoint(tmp_path / "all.safetensors")
    assert torch.equal(again(images), together(images))
    to_onnx(again, tmp_path / "all.onnx")
    file = ort.InferenceSession(tmp_path / "all.onnx", providers=["CPUExecutionProvider"])
    (logits,) = file.run(["logits"], {"image": images.numpy()})
    with torch.no_grad():
        said = [network(seen).double().softmax(-1) for seen in (images, in_the_mirror(images)) for network in alone]
    np.testing.assert_allclose(np.exp(logits), sum(said) / len(said), rtol=1e-3, atol=1e-5)


def test_a_network_without_mirror_images_is_written_as_before():
    assert "mirrored" not in plain(branches=2)._model_args
    assert calibrated(2, [1])._model_args["mirrored"] == [1]


@pytest.mark.parametrize("mirrored", [[2], [-1], [0, 0], [True], ["1"], 1, "1", {1}, None])
def test_numbers_that_are_no_branches_are_refused(mirrored):
    with pytest.raises(ConfigurationError, match="mirrored"):
        ccnn_zoo.calibrate(plain(name="resnet18"), branches=2, mirrored=mirrored)


def test_what_mirror_images_make_no_sense_for_is_refused():
    with pytest.raises(ConfigurationError, match="mirrored needs mixing='grouped'"):
        ccnn_zoo.calibrate(plain(name="resnet18"), branches=2, mixing="dense", mirrored=[1])
    with pytest.raises(ConfigurationError, match="shared_input=True"):
        ccnn_zoo.CalibratedConv2d(3, 4, 3, branches=2, mirrored=[1])
    with pytest.raises(CalibrationError, match=r"\(Conv2dSame\) has no form of which branches see the mirror"):
        ccnn_zoo.calibrate(plain(name="tf_mobilenetv3_small_minimal_100"), branches=2, mirrored=[1])
    with pytest.raises(ConfigurationError, match="leave mirrored out"):
        create_detector("ccnn_resnet18", num_classes=1, backbone_kwargs={"mirrored": [1]})
    with pytest.raises(ConfigurationError, match="at least 1 networks, got 0"):
        ccnn_zoo.deep_ensemble([], mirrored=True)


def test_a_branch_that_sees_the_mirror_image_is_never_taken_for_one_that_does_not(tmp_path):
    both = ccnn_zoo.calibrate(plain(name="resnet18"), branches=2, mirrored=[1])
    first, second = ccnn_zoo.split(both).branches
    record = TrainingRecord("pictures", 0, 1)
    save_checkpoint(tmp_path / "first.safetensors", first, record)
    with pytest.raises(ConfigurationError, match="it is a branch that sees the mirror image"):
        save_checkpoint(tmp_path / "second.safetensors", second, record)
    assert not (tmp_path / "second.safetensors").exists()
    part = chosen_branches(both, [1])
    for joined in (lambda: ccnn_zoo.calibrate(part, branches=2), lambda: ccnn_zoo.deep_ensemble([part], mirrored=True)):
        with pytest.raises(ConfigurationError, match="is a branch that sees the mirror image; take the network"):
            joined()
    save_checkpoint(tmp_path / "part.safetensors", part, record)  # which says what it sees
    again, _ = load_checkpoint(tmp_path / "part.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()), both.forward_branches(pictures())[1], rtol=1e-4, atol=1e-5)


def test_weights_of_other_views_start_no_training_and_no_detector(tmp_path):
    mirrored = calibrated(2, [1], num_classes=10, in_chans=1)
    mirrored.pretrained_cfg = {**mirrored.pretrained_cfg, "label_names": list("0123456789")}
    save_checkpoint(tmp_path / "start.safetensors", mirrored, TrainingRecord("digits", 0, 1))
    kwargs = {name: list(value) for name, value in THIN.items()}
    settings = {**Recipe.load("digits").to_dict(), "branches": 2, "epochs": 1}
    settings["start_from"] = str(tmp_path / "start.safetensors")
    with pytest.raises(ConfigurationError, match=r"has mirrored=\[1\], the recipe's network mirrored=\[\]"):
        train(Recipe.from_mapping({**settings, "model_kwargs": kwargs}), tmp_path / "refused", progress=False)
    with pytest.raises(ConfigurationError, match=r"backbone_weights has mirrored=\[1\]"):
        create_detector(
            "ccnn_resnet18_cifar",
            num_classes=1,
            branches=2,
            backbone_kwargs=kwargs,
            backbone_weights=calibrated(2, [1]),
        )


def test_what_treats_left_and_right_differently_is_named():
    class Lopsided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad = nn.ZeroPad2d((0, 1, 0, 1))
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.pad(x)).mean((2, 3)))

    ccnn_zoo.calibrate(Lopsided(), branches=2)
    for branches, mirrored in ((2, [1]), (1, [0])):
        with pytest.raises(CalibrationError, match=r"pad .* treats left and right of the image differently"):
            ccnn_zoo.calibrate(Lopsided(), branches=branches, mirrored=mirrored)


class Own(nn.Module):
    """A network with attributes that are called as options are, which reads them."""

    def __init__(self, beside: str = "") -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.mirrored, self.branches, self.merge, self.beside = True, 3, "sum", beside

    def forward(self, x: Tensor) -> Tensor:
        if self.beside == "mean":
            x = x - self.pool(x)[:, :, None, None]
        y = self.conv(x).relu() * self.branches
        if self.beside == "image":
            y = y * x.mean(1, keepdim=True)
        return self.head(y.mean((2, 3)) * (2 if self.mirrored and self.merge == "sum" else 1))


@pytest.mark.parametrize("mirrored", [[], [1]])
def test_attributes_of_ones_own_stay(mirrored):
    alone, images = randomize(Own(), 0).eval(), pictures()
    both = ccnn_zoo.calibrate(alone, branches=2, mirrored=mirrored)
    for network in (both, *ccnn_zoo.split(both).branches, chosen_branches(both, [0])):
        assert (network.mirrored, network.branches, network.merge) == (True, 3, "sum")
    with torch.no_grad():
        torch.testing.assert_close(chosen_branches(both, [0])(images), alone(images), rtol=1e-4, atol=1e-5)


def test_what_no_mirror_changes_may_stand_before_a_convolution():
    alone, images = randomize(Own("mean"), 0).eval(), pictures()
    with torch.no_grad():
        wanted = (alone(images) + alone(in_the_mirror(images))) / 2
        both = ccnn_zoo.calibrate(alone, branches=2, mirrored=[1])
        torch.testing.assert_close(both(images), wanted, rtol=1e-4, atol=1e-5)


def test_an_image_that_is_read_beside_a_convolution_is_named_as_the_reason():
    ccnn_zoo.calibrate(Own("image"), branches=2)
    with pytest.raises(CalibrationError, match="it may do so without mirrored"):
        ccnn_zoo.calibrate(Own("image"), branches=2, mirrored=[1])


@pytest.mark.parametrize(("option", "value"), [("mirrored", [1]), ("merge", "max")])
def test_weights_are_not_loaded_into_a_network_of_other_branches(option, value, tmp_path):
    source = plain(branches=2, **{option: value})
    save_checkpoint(tmp_path / "a.safetensors", source, TrainingRecord("pictures", 0, 1))
    other = plain(1, branches=2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ConfigurationError, match=f"of a network with {option}="):
        load_checkpoint(tmp_path / "a.safetensors", into=other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    same = plain(1, branches=2, **{option: value})
    load_checkpoint(tmp_path / "a.safetensors", into=same)
    assert torch.equal(same(pictures()), source(pictures()))


@pytest.mark.parametrize(
    ("shared", "mirrored", "said"),
    [
        (10, [1], ["branch k convolves with", "branch 1 sees the mirror image"]),
        (19, [1], ["is two branches, and counts twice below", "branch 1 sees"]),
        (19, [0, 1, 2], ["branches 0, 1 and 2 see the mirror image"]),
        (19, None, ["Every branch has weights of its own"]),
    ],
)
def test_a_card_says_what_the_branches_are_and_what_they_see(shared, mirrored, said):
    details = {"branches": 3, "parameters": {"shared": shared, "folded": 19}}
    text = kind_of(details, "pictures", mirrored)
    assert all(words in text for words in said)
    assert ("Every branch has weights of its own" in text) == (mirrored is None)
    assert ("calibrated" in text) == (shared == 10)


@pytest.mark.parametrize("mirrored", [[1], [True], "yes", 1, None])
def test_an_ensemble_is_asked_for_mirror_images_by_a_truth_value(mirrored):
    with pytest.raises(ConfigurationError, match="mirrored must be True or False for an ensemble"):
        ccnn_zoo.deep_ensemble([plain(), plain(1)], mirrored=mirrored)


def _train(folder: Path, flip: float) -> None:
    thin = f"model_kwargs={json.dumps({key: list(value) for key, value in THIN.items()})}"
    settings = ["--set", thin, "--set", f"flip={flip}"]
    run = ccnn("train", "--branches", 1, "--epochs", 1, *settings, "-o", folder)
    assert run.returncode == 0, run.stderr


def test_the_command_takes_one_network_that_knows_mirror_images(tmp_path):
    knows, knows_not = (
        made_once(f"mirrored {flip}", lambda folder, flip=flip: _train(folder, flip)) for flip in (0.5, 0)
    )
    run = ccnn("ensemble", knows, "--mirrored", "-o", tmp_path / "both")
    assert run.returncode == 0, run.stderr
    both, record = load_checkpoint(tmp_path / "both" / "last.safetensors")
    alone, _ = load_checkpoint(knows / "last.safetensors")
    images = torch.randn(8, *load_data("digits").input_size)
    with torch.no_grad():
        wanted = (alone(images).softmax(-1) + alone(in_the_mirror(images)).softmax(-1)) / 2
        torch.testing.assert_close(both(images).softmax(-1), wanted, rtol=1e-4, atol=1e-5)
    assert record.recipe["model_kwargs"]["mirrored"] == [1]
    assert record.recipe["branches"] == 2
    run = ccnn("ensemble", knows_not, "--mirrored", "-o", tmp_path / "neither")
    assert run.returncode != 0
    assert "without mirrored pictures (flip=0)" in " ".join(run.stderr.split())
    assert not (tmp_path / "neither").exists()
    for again in (knows, f"{knows}/", knows / "last.safetensors"):
        run = ccnn("ensemble", knows, again, "--mirrored", "-o", tmp_path / "neither")
        assert run.returncode != 0
        assert "is given twice" in " ".join(run.stderr.split())
