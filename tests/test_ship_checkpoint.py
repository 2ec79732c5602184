"""What the card of a shipped checkpoint says of its training."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from ccnn_zoo.checkpoint import TrainingRecord
from ccnn_zoo.train import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import ship_checkpoint

PLAIN = Recipe.load("cifar10_cpu")
MIRRORED = replace(PLAIN, branches=2, model_kwargs={"mirrored": [1]})


def record(recipe: Recipe) -> TrainingRecord:
    return TrainingRecord(data="some", seed=0, epochs=recipe.epochs, recipe=asdict(recipe))


@pytest.mark.parametrize("run", [MIRRORED, replace(PLAIN, lr=0.05), replace(PLAIN, model_kwargs={"drop_rate": 0.1})])
def test_the_command_on_the_card_gives_the_recipe_of_the_run(run):
    args = argparse.Namespace(recipe="cifar10_cpu", run=Path("runs/a"), name="ccnn_resnet18_cifar.a", control=None)
    args.members = []
    words = shlex.split(next(ship_checkpoint.commands(args, record(run), [])))
    assert words[:2] == ["ccnn", "train"]
    given: dict[str, object] = {}
    for option, value in zip(words[2::2], words[3::2], strict=True):
        name, _, setting = value.partition("=") if option == "--set" else (option.removeprefix("--"), "", value)
        given[name] = yaml.safe_load(setting)
    assert [given.pop(name) for name in ("recipe", "data", "output")] == ["cifar10_cpu", "cifar10:DATA", "runs/a"]
    assert replace(PLAIN, **given) == run


def test_a_control_differs_in_branches_and_in_what_they_see_alone():
    assert ship_checkpoint.differences(record(MIRRORED), record(PLAIN)) == []
    narrow = replace(MIRRORED, model_kwargs={"mirrored": [1], "drop_rate": 0.1})
    assert ship_checkpoint.differences(record(narrow), record(PLAIN)) == ["model_kwargs"]
    assert ship_checkpoint.differences(record(MIRRORED), record(replace(PLAIN, lr=0.05))) == ["lr"]
