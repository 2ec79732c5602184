"""What is minimised: the loss of the merged logits, the mean of the branches' own losses, or a mix of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ccnn_zoo.checkpoint import save_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, build_model, load_data, train

# One step by all images at once: their order does not matter.
STEP = Recipe(
    model="ccnn_resnet18_cifar",
    model_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    branches=3,
    data="digits",
    iterations=1,
    batch_size=1437,
    optimizer="sgd",
    lr=1.0,
    momentum=0.0,
    weight_decay=0.0,
    scheduler="constant",
)


def one_step(recipe, folder):
    """Return by how much the weights of a training fell in its one step, and its loss."""
    result = train(recipe, folder, progress=False, pictures=False)
    before = build_model(recipe, load_data("digits"))
    steps = {
        n: (a - b).detach() for (n, a), b in zip(before.named_parameters(), result.model.parameters(), strict=True)
    }
    return steps, result.history[-1].train_loss


def gradients(recipe, loss):
    """Return autograd's, of ``loss`` of all images, by a loop over the branches that knows no trainer."""
    data = load_data("digits")
    model = build_model(recipe, data).train()
    pixels = data.train.pixels.permute(0, 3, 1, 2) / 255
    images = (pixels - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    alone = model.forward_branches(images)
    joined = {"mean": alone.mean(0), "probability": torch.stack([b.softmax(1) for b in alone]).mean(0).log()}
    merged = joined[model.merge]
    value = loss(merged, list(alone), data.train.targets)
    value.backward()
    return {n: p.grad for n, p in model.named_parameters()}, value.item()


def mean_of_branches(alone, targets):
    return sum(F.cross_entropy(logits, targets) for logits in alone) / len(alone)


WANTED = {
    "joint": lambda merged, alone, targets: F.cross_entropy(merged, targets),
    "branches": lambda merged, alone, targets: mean_of_branches(alone, targets),
    0.25: lambda merged, alone, targets: (
        0.25 * F.cross_entropy(merged, targets) + 0.75 * mean_of_branches(alone, targets)
    ),
}


@pytest.mark.parametrize(
    ("objective", "merge"), [("joint", "probability"), ("branches", "mean"), (0.25, "mean"), (0.25, "probability")]
)
def test_a_step_follows_the_gradient_of_the_objective(tmp_path, objective, merge):
    recipe = replace(STEP, objective=objective, merge=merge)
    steps, loss = one_step(recipe, tmp_path)
    wanted, value = gradients(recipe, WANTED[objective])
    assert loss == pytest.approx(value, rel=1e-4)
    for name, step in steps.items():
        if not name.endswith("calibration"):  # frozen by SGD
            # The trainer runs a few branches at a time, which rounds otherwise.
            torch.testing.assert_close(
                step, wanted[name], rtol=1e-2, atol=1e-3 * wanted[name].abs().max().item() + 1e-6
            )


@pytest.mark.parametrize("changes", [{"mixup": 0.8, "label_smoothing": 0.1}, {"cutmix": 1.0}])
def test_branches_that_agree_have_the_joint_loss_whatever_the_targets(tmp_path, changes):
    same = replace(STEP, **changes, model_kwargs={**STEP.model_kwargs, "diversity": 0.0}, batch_size=128, lr=0.0)
    losses = [
        train(replace(same, objective=objective), tmp_path / str(objective), progress=False, pictures=False)
        .history[-1]
        .train_loss
        for objective in ("joint", "branches", 0.5)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_one_branch_has_one_objective(tmp_path):
    plain = replace(STEP, branches=1, batch_size=128)
    weights = [
        train(
            replace(plain, objective=objective), tmp_path / objective, progress=False, pictures=False
        ).model.state_dict()
        for objective in ("joint", "branches")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize("value", ["both", -0.1, 1.5, True, None])
def test_unknown_objectives_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"objective, which is 'joint' or 'branches' or a share, must be"):
        replace(STEP, objective=value)


def test_networks_whose_branches_have_no_classifier_are_refused(tmp_path):
    network = {"model": "ccnn_alexnet", "branches": 2, "image_size": 64}
    recipe = Recipe(**network, data="digits", batch_size=4, iterations=1, objective="branches")
    with pytest.raises(ConfigurationError, match=r"meet in a linear classifier.*objective='joint'"):
        train(recipe, tmp_path, progress=False, pictures=False)


def test_runs_from_before_the_objective_stay_the_same_runs():
    assert "objective" not in STEP.decisive()
    assert replace(STEP, objective="branches").decisive()["objective"] == "branches"


def test_a_student_follows_the_labels_and_its_teachers_probabilities(tmp_path):
    teacher = train(replace(STEP, batch_size=128, lr=0.1), tmp_path / "teacher", progress=False, pictures=False).model
    student = replace(STEP, branches=1, seed=1, teacher=str(tmp_path / "teacher"), teacher_share=0.75)
    steps, loss = one_step(student, tmp_path / "student")
    data = load_data("digits")
    pixels = data.train.pixels.permute(0, 3, 1, 2) / 255
    images = (pixels - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    wanted = teacher(images).softmax(1).detach()
    model = build_model(student, data).train()
    logits = model(images)
    divergence = (wanted * (wanted.log() - logits.log_softmax(1))).sum(1).mean()
    value = 0.25 * F.cross_entropy(logits, data.train.targets) + 0.75 * divergence
    value.backward()
    assert loss == pytest.approx(value.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        if not name.endswith("calibration"):
            near = 1e-3 * parameter.grad.abs().max().item() + 1e-6
            torch.testing.assert_close(steps[name], parameter.grad, rtol=1e-2, atol=near)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    result = train(replace(STEP, batch_size=128), tmp_path / "teacher", progress=False, pictures=False)
    result.model.pretrained_cfg["label_names"] = list("abcdefghij")
    save_checkpoint(tmp_path / "other.safetensors", result.model, result.record)
    with pytest.raises(ConfigurationError, match=r"teacher='.*other\.safetensors' has other classes"):
        train(
            replace(STEP, teacher=str(tmp_path / "other.safetensors")),
            tmp_path / "student",
            progress=False,
            pictures=False,
        )
