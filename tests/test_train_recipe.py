"""Contract of ccnn_zoo.train.Recipe: what is not valid is refused with its name, and YAML says all of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
import yaml

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, build_scheduler

VALID = {"model": "ccnn_resnet18_cifar", "data": "digits", "epochs": 2}


def test_every_value_survives_yaml(tmp_path):
    recipe = Recipe(
        model="ccnn_resnet18",
        data="folder:some/where",
        iterations=64_000,
        evaluate_every=4,
        branches=8,
        branches_at_once=2,
        merge="concat",
        objective=0.3,
        teacher="runs/teacher",
        teacher_share=0.5,
        model_kwargs={"drop_rate": 0.1},
        start_from="runs/first",
        skip_unreadable=True,
        skip_bad_annotations=True,
        validation=0.1,
        image_size=96,
        crop_scale=(0.08, 1.0),
        flip=0.5,
        auto_augment="rand-m9-mstd0.5",
        color_jitter=0.4,
        random_erasing=0.25,
        mixup=0.2,
        cutmix=1.0,
        label_smoothing=0.1,
        batch_size=256,
        accumulate=2,
        noise="gradient",
        noise_decay=0.55,
        ema_decay=0.999,
        sync_batchnorm=True,
        optimizer="sgd",
        lr=0.25,
        momentum=0.8,
        weight_decay=5e-4,
        noise_std=1e-5,
        calibration_lr=0.01,
        calibration_update="ascent",
        scheduler="multistep",
        warmup=0.05,
        decay_at=(0.25, 0.5),
        decay_rate=0.2,
        seed=7,
        member=2,
        mixed_precision="bf16",
        channels_last=True,
        workers=2,
        save_every=100,
        keep=3,
    )
    untouched = {f.name for f in fields(Recipe) if getattr(recipe, f.name) == f.default}
    # They exclude iterations, crop_scale and branches_at_once.
    assert untouched == {"epochs", "crop_padding", "compile"}
    recipe.to_yaml(tmp_path / "a.yaml")
    assert Recipe.from_yaml(tmp_path / "a.yaml") == recipe
    assert Recipe.load(tmp_path / "a.yaml") == recipe


def test_defaults_are_written_too(tmp_path):
    Recipe(**VALID).to_yaml(tmp_path / "a.yaml")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()).keys() == {f.name for f in fields(Recipe)}


def test_a_recipe_does_not_change():
    with pytest.raises(FrozenInstanceError):
        Recipe(**VALID).lr = 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "no_network"),
        ("model", None),
        ("data", ""),
        ("data", 3),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("branches", 0),
        ("merge", "median"),
        ("model_kwargs", [1]),
        ("validation", 1.0),
        ("validation", -0.1),
        ("image_size", 0),
        ("crop_padding", -1),
        ("crop_scale", (0.5,)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", 0.5),
        ("flip", 1.5),
        ("batch_size", 0),
        ("batch_size", "64"),
        ("optimizer", "adam"),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", "1e-1"),
        ("momentum", True),
        ("weight_decay", -1e-4),
        ("noise_std", -1e-4),
        ("calibration_lr", None),
        ("calibration_update", "sideways"),
        ("scheduler", "linear"),
        ("warmup", 1.0),
        ("decay_at", ()),
        ("decay_at", 0.5),
        ("decay_at", (0.5, 1.0)),
        ("decay_rate", 0.0),
        ("decay_rate", 1.5),
        ("seed", -1),
        ("mixed_precision", "fp8"),
        ("mixed_precision", False),
        ("channels_last", "yes"),
        ("workers", -1),
        ("accumulate", 0),
        ("ema_decay", 1.0),
        ("mixup", -0.1),
        ("label_smoothing", 1.0),
        ("random_erasing", 1.5),
        ("noise", "loud"),
        ("compile", "yes"),
        ("sync_batchnorm", 1.5),
        ("save_every", 0),
        ("keep", 0),
    ],
)
def test_a_value_outside_its_range_is_named(name, value):
    with pytest.raises(ConfigurationError, match=name):
        Recipe(**{**VALID, name: value})


def test_an_override_is_checked_as_well():
    with pytest.raises(ConfigurationError, match="lr"):
        replace(Recipe(**VALID), lr=-1.0)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "iterations": 1}])
def test_the_length_is_given_once(length):
    with pytest.raises(ConfigurationError, match="epochs or iterations"):
        Recipe(model="ccnn_resnet18", data="digits", **length)


def test_a_padded_and_a_resized_crop_exclude_each_other():
    with pytest.raises(ConfigurationError, match="exclude"):
        Recipe(**VALID, crop_padding=4, crop_scale=(0.5, 1.0))


def test_step_takes_one_interval():
    with pytest.raises(ConfigurationError, match="interval"):
        Recipe(**VALID, scheduler="step", decay_at=(0.1, 0.2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: ccnn_resnet18\ndata: digits\nepochs: 1\nlearning_rate: 0.1",
            "unknown keys learning_rate; known are .*lr",
        ),
        ("model: ccnn_resnet18\nepochs: 1", "lacks data"),
        ("model: ccnn_resnet18\ndata: digits\nepochs: 1\nlr: 1e-1", r"write 1\.0e-4"),
        ("model: ccnn_resnet18\ndata: digits\nepochs: 1\nmixed_precision: no", "quote 'no'"),
        ("- 1\n- 2", "name: value"),
        ("", "name: value"),
        ("a: [", "not YAML"),
        ("a: 2020-99-99", "not YAML: month must be in 1..12"),
        ("a: !!int ''", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("[" * 100_000, "not YAML"),
        (f"model: ccnn_resnet18\ndata: digits\nepochs: {'9' * 5000}", "not YAML"),
        ("model: !!python/object/apply:os.system [x]", "not YAML"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"bad\.yaml.*{message}"):
        Recipe.from_yaml(tmp_path / "bad.yaml")


def test_a_recipe_that_notepad_saved_is_read(tmp_path):
    recipe = Recipe(**VALID)
    recipe.to_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text((tmp_path / "a.yaml").read_text(), encoding="utf-8-sig")
    assert Recipe.from_yaml(tmp_path / "b.yaml") == recipe
    (tmp_path / "c.yaml").write_text((tmp_path / "a.yaml").read_text() + "# Größe", encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"c\.yaml is no text in UTF-8"):
        Recipe.from_yaml(tmp_path / "c.yaml")


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.mkdir [made]")
    with pytest.raises(ConfigurationError, match="not YAML"):
        Recipe.from_yaml(tmp_path / "evil.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.yaml"):
        Recipe.load(tmp_path / "absent.yaml")


BRANCHES = {"cifar10_cpu": 1, "cifar10_table1": 4, "digits": 1, "imagenet_table3": 2, "mnist_cpu": 4}


@pytest.mark.parametrize("name", BRANCHES)
def test_every_packaged_recipe_is_valid(name):
    assert Recipe.load(name).branches == BRANCHES[name]


def learning_rate(name: str, steps: int, *done: int) -> list[float]:
    recipe = Recipe.load(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=recipe.lr)
    scheduler = build_scheduler(recipe, optimizer, steps)
    rates = []
    for step in done:
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_recipe_of_table_1_is_the_papers():
    recipe = Recipe.load("cifar10_table1")
    assert (recipe.model, recipe.branches, recipe.noise_std) == ("ccnn_resnet18_cifar", 4, 1e-4)
    assert (recipe.iterations, recipe.batch_size, recipe.weight_decay, recipe.momentum) == (64_000, 128, 1e-4, 0.9)
    assert (recipe.crop_padding, recipe.flip, 50_000 * recipe.validation) == (4, 0.5, 5_000)
    rates = learning_rate("cifar10_table1", 64_000, 0, 31_999, 32_000, 47_999, 48_000, 63_999)
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_recipe_of_table_3_is_the_papers():
    recipe = Recipe.load("imagenet_table3")
    assert (recipe.model, recipe.branches, recipe.epochs) == ("ccnn_resnet18", 2, 120)
    per_epoch = 1_281_167 // recipe.batch_size
    last, first = 15 * per_epoch - 1, 15 * per_epoch
    rates = learning_rate("imagenet_table3", 120 * per_epoch, 0, last, first, 2 * first - 1, 2 * first, 8 * first - 1)
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 1e-8])


def test_packaged_recipes_load_by_name():
    recipe = Recipe.load("digits")
    assert (recipe.model, recipe.data, recipe.branches) == ("ccnn_resnet18_cifar", "digits", 1)
    with pytest.raises(ConfigurationError, match=r"packaged are .*digits"):
        Recipe.load("no_such_recipe")
