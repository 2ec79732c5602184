"""``ccnn_zoo.deep_ensemble`` and ``ccnn ensemble``: networks trained apart, as the branches of one."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
from forks import ccnn
from made_once import made_once
from separate_networks import randomize
from torch import nn

import ccnn_zoo
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.export import to_onnx
from ccnn_zoo.train import Recipe, build_model, evaluation_batches, load_data

THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}


def network(seed: int, name: str = "ccnn_resnet18_cifar", **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    if name.startswith("ccnn_"):
        kwargs = {**THIN, "branches": 1, **kwargs}
    return randomize(timm.create_model(name, **{"num_classes": 5, **kwargs}), seed).eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def check_mean(together: nn.Module, alone: list[nn.Module]) -> None:
    with torch.no_grad():
        separate = [member(images()).double().softmax(-1) for member in alone]
        assert min(float((a - b).abs().max()) for a in separate for b in separate if a is not b) > 1e-3
        torch.testing.assert_close(together(images()).double().softmax(-1), sum(separate) / len(separate))
        for own, logits in zip(separate, together.forward_branches(images()), strict=True):
            torch.testing.assert_close(logits.double().softmax(-1), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ccnn_resnet18_cifar", "resnet18", "mobilenetv3_small_050"])
def test_its_probabilities_are_the_mean_of_the_networks(name):
    alone = [network(seed, name) for seed in range(3)]
    before = copy.deepcopy([member.state_dict() for member in alone])
    together = ccnn_zoo.deep_ensemble(alone)
    check_mean(together, alone)
    assert not any(isinstance(module, ccnn_zoo.CalibratedConv2d) for module in together.modules())
    for member, tensors in zip(alone, before, strict=True):
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in member.state_dict().items())


def test_it_is_saved_split_and_exported_as_other_networks_with_branches(tmp_path):
    alone = [network(seed) for seed in range(2)]
    together = ccnn_zoo.deep_ensemble(alone)
    save_checkpoint(tmp_path / "both.safetensors", together, TrainingRecord("pictures", 0, 1))
    again, _ = load_checkpoint(tmp_path / "both.safetensors")
    assert torch.equal(again(images()), together(images()))
    check_mean(again, alone)
    torch.testing.assert_close(ccnn_zoo.split(again)(images()), together(images()))
    to_onnx(again, tmp_path / "both.onnx")
    file = ort.InferenceSession(tmp_path / "both.onnx", providers=["CPUExecutionProvider"])
    pixels = images()[:, :, :32, :32]
    (logits,) = file.run(["logits"], {"image": pixels.numpy()})
    with torch.no_grad():
        wanted = torch.stack([member(pixels).softmax(-1) for member in alone]).mean(0)
    np.testing.assert_allclose(np.exp(logits), wanted.numpy(), rtol=1e-3, atol=1e-5)


def test_networks_that_differ_in_more_than_their_weights_are_refused():
    one = network(0)
    with pytest.raises(ConfigurationError, match="at least 2 networks, got 1"):
        ccnn_zoo.deep_ensemble([one])
    with pytest.raises(ConfigurationError, match=r"network 1 is of another architecture .* bn1\.bias is \(9,\)"):
        ccnn_zoo.deep_ensemble([one, network(1, channels=(9, 8, 16, 16))])
    with pytest.raises(ConfigurationError, match="network 1 has 2 branches already"):
        ccnn_zoo.deep_ensemble([one, network(1, branches=2)])
    other = network(1)
    other.pretrained_cfg = {**other.pretrained_cfg, "mean": (0.5, 0.5, 0.5)}
    with pytest.raises(ConfigurationError, match="network 1 has other values of mean than network 0"):
        ccnn_zoo.deep_ensemble([one, other])
    strided = network(1)
    strided.layer2[0].conv1.stride = strided.layer2[0].downsample[0].stride = (1, 1)
    with pytest.raises(CalibrationError, match="network 1 does not say in the ensemble what it says alone"):
        ccnn_zoo.deep_ensemble([one, strided])
    with pytest.raises(ConfigurationError, match="no classifier"):
        ccnn_zoo.deep_ensemble([network(0, num_classes=0), network(1, num_classes=0)])


def test_what_is_one_for_all_branches_must_be_the_same_in_all_networks():
    def with_slope(seed: int, slope: float) -> nn.Module:
        model = network(seed, "resnet18")
        model.act1 = nn.PReLU(init=slope)
        return model

    alone = [with_slope(0, 0.1), with_slope(1, 0.1)]
    check_mean(ccnn_zoo.deep_ensemble(alone), alone)
    with pytest.raises(CalibrationError, match=r"act1\.weight \(PReLU\) is one for all branches"):
        ccnn_zoo.deep_ensemble([with_slope(0, 0.1), with_slope(1, 0.2)])


def test_a_member_has_other_first_weights_and_nothing_else_of_its_own():
    data, recipe = load_data("digits"), Recipe.load("digits")
    first, second = (build_model(Recipe.from_mapping({**recipe.to_dict(), "member": m}), data) for m in (0, 1))
    assert torch.equal(first.conv1.weight, build_model(recipe, data).conv1.weight)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    # A run of before there were members goes on.
    assert "member" not in recipe.decisive()
    assert Recipe.from_mapping({**recipe.to_dict(), "member": 1}).decisive()["member"] == 1
    with pytest.raises(ConfigurationError, match="member"):
        Recipe.from_mapping({**recipe.to_dict(), "member": -1})


TRAINED = {
    "member 0": ["--set", "member=0", "--set", "validation=0.2"],
    "member 1": ["--set", "member=1", "--set", "validation=0.2"],
    "other seed": ["--seed", 1, "--set", "validation=0.2"],
}


@pytest.fixture(scope="module")
def runs() -> dict[str, Path]:
    return {name: made_once(f"ensemble {name}", lambda folder, name=name: _train(folder, name)) for name in TRAINED}


def _train(folder: Path, name: str) -> None:
    thin = f"model_kwargs={json.dumps({key: list(value) for key, value in THIN.items()})}"
    run = ccnn("train", "--branches", 1, "--epochs", 1, "--set", thin, *TRAINED[name], "-o", folder)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def both(runs) -> Path:
    return made_once("ensemble of two", lambda folder: _join(folder, runs))


def _join(folder: Path, runs: dict[str, Path]) -> None:
    run = ccnn("ensemble", runs["member 0"], runs["member 1"], "-o", folder)
    assert run.returncode == 0, run.stderr
    (folder / "said.txt").write_text(run.stdout)


def test_the_command_measures_what_it_joins(runs, both):
    model, record = load_checkpoint(both / "last.safetensors")
    assert model.conversion.branches == record.recipe["branches"] == 2
    alone = [load_checkpoint(runs[f"member {m}"] / "last.safetensors")[0] for m in (0, 1)]
    data = load_data("digits")
    data, held = data.hold_out(0.2, 0)
    for part, examples in {"test": data.test, "validation": held}.items():
        batches = list(evaluation_batches(replace(data, test=examples)))
        wanted = torch.cat([classes for _, classes in batches])
        with torch.no_grad():
            mean = torch.cat([sum(m(pixels).double().softmax(-1) for m in alone) / 2 for pixels, _ in batches])
        error = 100 * (mean.argmax(1) != wanted).double().mean().item()
        assert record.metrics[f"{part}_error_percent"] == pytest.approx(error)
        loss = -mean[torch.arange(len(wanted)), wanted].log().mean().item()
        assert record.metrics[f"{part}_loss"] == pytest.approx(loss, rel=1e-4)
    assert f"together: test error {record.metrics['test_error_percent']:.2f} %" in (both / "said.txt").read_text()


def test_the_command_refuses_what_would_spoil_held_out_pictures_or_a_member(runs, tmp_path):
    run = ccnn("ensemble", runs["member 0"], runs["other seed"], "-o", tmp_path / "both")
    assert run.returncode == 1
    assert "held out other pictures (validation=0.2, seed=1)" in run.stderr
    assert "--set member=0, member=1" in run.stderr
    assert not (tmp_path / "both").exists()
    run = ccnn("ensemble", runs["member 0"], runs["member 1"], "-o", runs["member 1"])
    assert run.returncode == 1
    assert "is one of the networks, which would be lost" in run.stderr
    (tmp_path / "file").write_text("is no folder")
    run = ccnn("ensemble", runs["member 0"], runs["member 1"], "-o", tmp_path / "file")
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert (tmp_path / "file").read_text() == "is no folder"


def test_its_card_does_not_say_that_the_branches_share_their_weights(both, tmp_path):
    run = ccnn("publish", both, f"local:{tmp_path / 'hub'}")
    assert run.returncode == 0, run.stderr
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "convolutional network of 2 branches, trained on scikit-learn digits" in card
    assert "Every branch has weights of its own" in card
    assert "share one weight" not in card


def test_it_is_exported_as_a_cascade_whose_first_member_is_a_network(runs, both, tmp_path):
    run = ccnn("export", both, "-o", tmp_path / "both.onnx", "--cascade")
    assert run.returncode == 0, run.stderr
    assert re.search("same class as torch +on 100 % of 360 images", run.stdout)
    file = ort.InferenceSession(tmp_path / "both_first.onnx", providers=["CPUExecutionProvider"])
    pixels = next(iter(evaluation_batches(load_data("digits"))))[0]
    found = file.run(["logits"], {"image": pixels.numpy()})[0]
    with torch.no_grad():
        alone = [load_checkpoint(runs[f"member {m}"] / "last.safetensors")[0](pixels).numpy() for m in (0, 1)]
    assert min(np.abs(found - logits).max() for logits in alone) < 1e-4
