"""What arguments bring into the zoo's networks is checked as `calibrate` checks it, and nothing else pays for that."""

from __future__ import annotations

import pytest
import timm
import torch

import ccnn_zoo  # noqa: F401
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.models import _calibrated

THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "num_classes": 5}


def made(**arguments: object) -> torch.nn.Module:
    return timm.create_model("ccnn_resnet18", **THIN | arguments).eval()


@pytest.fixture
def checks(monkeypatch) -> list[str]:
    """Names of the classes that are checked, as they are; none is known from before."""
    seen: list[str] = []
    checked = _calibrated.checked

    def noted(found: object, model: torch.nn.Module, options: object) -> object:
        seen.append(type(model).__name__)
        return checked(found, model, options)

    monkeypatch.setattr(_calibrated, "_checked", set())
    monkeypatch.setattr(_calibrated, "checked", noted)
    return seen


@pytest.mark.parametrize(("attention", "folded"), [("cbam", False), ("sk", True)])
def test_attention_that_mixes_branches_is_refused_when_the_network_is_made(attention, folded):
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(CalibrationError, match=r"layer1\.0\.se.* mixes the channels of different branches"):
            made(block_args={"attn_layer": attention}, folded=folded)
    assert made(block_args={"attn_layer": attention}, branches=1)(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_attention_that_keeps_branches_apart_is_checked_once_per_class_and_arguments(checks):
    for _ in range(3):
        assert made(block_args={"attn_layer": "se"})(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert checks == ["CalibratedResNet"]
    made(block_args={"attn_layer": "se"}, branches=3)
    assert checks == ["CalibratedResNet"] * 2


def test_the_zoos_networks_as_they_are_need_no_check(checks):
    with torch.device("meta"):
        for name in timm.list_models("ccnn_*"):
            timm.create_model(name)
    assert checks == []


@pytest.mark.parametrize("layers", [(1, 1), (1,), (), (1, 1, 1, 1, 1)])
def test_a_wrong_number_of_stages_is_refused_when_the_network_is_made(layers):
    with pytest.raises(ConfigurationError, match=r"three or four stages, got \("):
        made(layers=layers)
