"""The trained weights that come with the package."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
import timm
import torch

import ccnn_zoo
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.train import evaluation_batches, load_data

FOLDER = Path(ccnn_zoo.__file__).parent / "checkpoints"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.safetensors"))]


def test_the_names_are_timms_and_the_files_small():
    assert set(NAMES) == {f"ccnn_resnet18_cifar.{tag}" for tag in ("mirror_cifar10", "cifar10", "mnist")}
    assert set(timm.list_pretrained("ccnn_*")) == set(NAMES)
    assert sum(os.path.getsize(FOLDER / f"{name}.safetensors") for name in NAMES) < 10e6


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_loads_the_file_without_a_network(name, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("tried to reach a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = timm.create_model(name, pretrained=True).eval()
    trained, record = load_checkpoint(FOLDER / f"{name}.safetensors")
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), trained(images))
    assert len(model.pretrained_cfg["label_names"]) == model.num_classes == 10
    assert f"{record.metrics['test_error_percent']:.2f} %" in (FOLDER / f"{name}.md").read_text()


@pytest.mark.parametrize("name", [*NAMES, "ccnn_resnet18_cifar"])
def test_class_names_belong_to_the_weights(name):
    assert timm.create_model(name).pretrained_cfg.get("label_names") is None
    named = timm.create_model(name, pretrained_cfg_overlay={"label_names": list("abcdefghij")})
    assert named.pretrained_cfg["label_names"] == list("abcdefghij")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_the_file_by_its_sum(name):
    import hashlib

    digest = hashlib.sha256((FOLDER / f"{name}.safetensors").read_bytes()).hexdigest()
    assert digest in (FOLDER / f"{name}.md").read_text()


def test_mnist_is_classified_as_the_card_says(real_data):
    data = load_data(f"mnist:{real_data}")
    model = timm.create_model("ccnn_resnet18_cifar.mnist", pretrained=True).eval()
    with torch.no_grad():
        wrong = sum((model(x).argmax(1) != y).sum().item() for x, y in evaluation_batches(data))
    card = (FOLDER / "ccnn_resnet18_cifar.mnist.md").read_text()
    stated = float(re.search(r"test error \| ([\d.]+) %", card)[1])
    assert 100 * wrong / len(data.test) == pytest.approx(stated, abs=0.04)  # one image is 0.03 %
