"""CSGD against Algorithm 1 of the paper and against ``torch.optim.SGD``."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn

from ccnn_zoo import CSGD, CalibratedConv2d
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchLinear
from ccnn_zoo.optim import CALIBRATION, SHARED_WEIGHT, get_role
from ccnn_zoo.optim._noise import NoiseSource

IMPLEMENTATIONS = [None, False, True]


def network(branches: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        CalibratedConv2d(3, 4, 3, padding=1, branches=branches, shared_input=True),
        nn.BatchNorm2d(4 * branches),
        nn.ReLU(),
        CalibratedConv2d(4, 4, 3, padding=1, bias=True, branches=branches),
        CalibratedConv2d(4, 6, (1, 5), branches=branches),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BranchLinear(6, 5, branches=branches),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int | range) -> nn.Module:
    for step in range(steps) if isinstance(steps, int) else steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def calibrations(model: nn.Module) -> list[Tensor]:
    return [m.calibration for m in model.modules() if isinstance(m, CalibratedConv2d)]


def assert_same_bits(first: nn.Module, second: nn.Module) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def assert_normalised(model: nn.Module) -> None:
    for r in calibrations(model):
        assert (r >= 0).all()
        torch.testing.assert_close(r.sum(0), torch.ones_like(r[0]), rtol=0, atol=1e-6)


class Alone(nn.Module):
    """One layer whose loss has the gradients that a test asks for."""

    def __init__(self, branches: int = 3, size: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = CalibratedConv2d(4, 5, size, branches=branches)

    def give(self, calibration: Tensor | float = 0.0, weight: Tensor | float = 0.0) -> Alone:
        self.conv.calibration.grad = torch.zeros_like(self.conv.calibration).add_(calibration)
        self.conv.weight.grad = torch.zeros_like(self.conv.weight).add_(weight)
        return self


# Algorithm 1


@pytest.mark.parametrize("foreach", IMPLEMENTATIONS)
@pytest.mark.parametrize("update", ["descent", "ascent"])
def test_a_step_is_algorithm_1(update: str, foreach: bool | None) -> None:
    model = Alone(branches=3, size=3)
    w, r = (p.detach().clone().double() for p in (model.conv.weight, model.conv.calibration))
    weight_grad, calibration_grad = torch.randn_like(w), 10 * torch.randn_like(r)
    model.give(calibration_grad.float(), weight_grad.float())
    options = {"noise_std": 0, "calibration_lr": 0.1, "calibration_update": update, "foreach": foreach}
    CSGD(model, lr=0.5, momentum=0, weight_decay=0, **options).step()
    moved = (r + (-0.1 if update == "descent" else 0.1) * calibration_grad).abs()
    assert (r - 0.1 * calibration_grad < 0).any(), "the absolute value must matter here"
    torch.testing.assert_close(model.conv.calibration.double(), moved / moved.sum(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.conv.weight.double(), w - 0.5 * weight_grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("foreach", IMPLEMENTATIONS)
@pytest.mark.parametrize("update", ["descent", "ascent"])
@pytest.mark.parametrize("branches", [1, 2, 4, 8])
def test_after_every_step_r_is_non_negative_and_sums_to_one(branches: int, update: str, foreach: bool | None) -> None:
    model = network(branches)
    optimizer = CSGD(model, lr=0.1, calibration_lr=5.0, calibration_update=update, foreach=foreach)
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        assert_normalised(model)


@pytest.mark.parametrize("foreach", IMPLEMENTATIONS)
def test_a_position_where_all_r_became_zero_is_reset_to_one_over_k(foreach: bool | None) -> None:
    model = Alone(branches=3)
    gradient = torch.zeros_like(model.conv.calibration)
    gradient[:, 0, 1] = 8 * model.conv.calibration.detach()[:, 0, 1]
    untouched = model.conv.calibration.detach().clone()
    CSGD(model.give(gradient), calibration_lr=0.125, foreach=foreach).step()  # R - R, to the bit
    assert torch.equal(model.conv.calibration[:, 0, 1], torch.full((3,), 1 / 3))
    torch.testing.assert_close(model.conv.calibration[:, 1], untouched[:, 1])
    assert_normalised(model)


@pytest.mark.parametrize("foreach", IMPLEMENTATIONS)
def test_a_nan_gradient_of_r_stays_visible(foreach: bool | None) -> None:
    model = Alone().give(calibration=math.nan)
    CSGD(model, foreach=foreach).step()
    assert model.conv.calibration.isnan().all()


@pytest.mark.parametrize("maximize", [False, True])
def test_descent_lowers_the_loss_through_r_and_ascent_raises_it(maximize: bool) -> None:
    images, labels = batch(0)
    change = {}
    for update in ("descent", "ascent"):
        model = network().double()
        options = {"calibration_lr": 1e-2, "calibration_update": update, "maximize": maximize}
        optimizer = CSGD(calibrations(model), lr=0, **options)
        before = F.cross_entropy(model(images.double()), labels)
        before.backward()
        optimizer.step()
        change[update] = F.cross_entropy(model(images.double()), labels) - before
    assert change["ascent" if maximize else "descent"] < 0
    assert change["descent" if maximize else "ascent"] > 0


def test_r_knows_neither_momentum_nor_weight_decay_nor_the_learning_rate_of_w() -> None:
    results = []
    for options in ({"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0}, {"lr": 9.0, "momentum": 0.9, "weight_decay": 1}):
        model = Alone()
        optimizer = CSGD(model, calibration_lr=0.1, **options)
        for _ in range(3):
            model.give(calibration=torch.linspace(-1, 1, 12).view(3, 2, 2))
            optimizer.step()
        results.append(model.conv.calibration.detach())
    assert torch.equal(*results)


def test_r_in_half_precision_is_normalised_as_well_as_it_can_hold() -> None:
    model = Alone(branches=4).half().give(calibration=torch.linspace(-3, 3, 16).view(4, 2, 2))
    CSGD(model, foreach=False).step()
    torch.testing.assert_close(model.conv.calibration.float().sum(0), torch.ones(2, 2), rtol=0, atol=2e-3)


# Against torch.optim.SGD


@pytest.mark.parametrize("foreach", IMPLEMENTATIONS)
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_without_noise_one_branch_follows_sgd_to_the_bit(momentum: float, foreach: bool | None) -> None:
    ours, theirs = network(branches=1), network(branches=1)
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 1e-2, "foreach": foreach}
    train(ours, CSGD(ours, noise_std=0, **options), 6)
    plain = [p for p in theirs.parameters() if get_role(p) != CALIBRATION]
    train(theirs, torch.optim.SGD(plain, **options), 6)
    assert_same_bits(ours, theirs)


def test_without_noise_one_branch_of_a_timm_network_follows_the_plain_one_to_the_bit() -> None:
    ours = timm.create_model("ccnn_resnet18_cifar", branches=1)
    theirs = timm.create_model("ccnn_resnet18_cifar", branches=1, folded=True)
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if not n.endswith("calibration")})
    train_10 = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    train(ours, CSGD(ours, noise_std=0, **train_10), 3)
    train(theirs, torch.optim.SGD(theirs.parameters(), **train_10), 3)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_multi_tensor_and_single_tensor_steps_agree_to_the_bit() -> None:
    models = [network(), network()]
    for model, foreach in zip(models, (False, True), strict=True):
        train(model, CSGD(model, lr=0.1, calibration_lr=1.0, foreach=foreach), 5)
    assert_same_bits(*models)


def test_layers_of_different_numbers_of_branches_are_each_projected() -> None:
    models = [nn.ModuleList([Alone(2, 3), Alone(4, 3), Alone(4, 2)]) for _ in range(2)]
    for model, foreach in zip(models, (False, True), strict=True):
        for layer in model:
            torch.manual_seed(1)
            layer.give(calibration=torch.randn_like(layer.conv.calibration))
        CSGD(model, calibration_lr=1.0, foreach=foreach).step()
        assert_normalised(model)
    assert_same_bits(*models)


# Noise


def noise(seed: int, std: float = 0.03) -> Tensor:
    """What the noise alone does to w in one step."""
    torch.manual_seed(5)
    model = CalibratedConv2d(64, 64, 3, branches=2, bias=True)
    others = [model.calibration.detach().clone(), model.bias.detach().clone()]
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    CSGD(model, weight_decay=0, noise_std=std, seed=seed).step()
    assert torch.equal(model.bias, others[1])
    torch.testing.assert_close(model.calibration, others[0])
    return model.weight.detach() - before


def test_noise_has_the_stated_standard_deviation_and_no_mean() -> None:
    sample = noise(seed=0)
    tolerance = 4 / math.sqrt(sample.numel())  # four standard errors of either figure
    assert sample.std().item() == pytest.approx(0.03, rel=tolerance)
    assert abs(sample.mean().item()) < 0.03 * tolerance
    assert sample.abs().max() > 3 * 0.03, "Gaussian, not uniform"


def test_noise_is_that_of_its_seed_and_leaves_the_global_generator_alone() -> None:
    assert torch.equal(noise(seed=3), noise(seed=3))
    assert not torch.equal(noise(seed=3), noise(seed=4))
    torch.manual_seed(7)
    expected = torch.rand(1)
    model = Alone().give()
    torch.manual_seed(7)
    CSGD(model, noise_std=1.0).step()
    assert torch.equal(torch.rand(1), expected)


def test_noise_goes_to_the_shared_weights_only() -> None:
    model, still = network(), network()
    for p in [*model.parameters(), *still.parameters()]:
        p.grad = torch.zeros_like(p)
    CSGD(model, weight_decay=0, noise_std=0.1).step()
    for p, before in zip(model.parameters(), still.parameters(), strict=True):
        assert (get_role(p) == SHARED_WEIGHT) == (not torch.allclose(p, before, atol=1e-5))


def test_two_layers_and_two_steps_get_different_noise() -> None:
    model = nn.Sequential(Alone(), Alone())
    optimizer = CSGD(model, weight_decay=0, noise_std=0.1)
    seen = [torch.zeros(5, 4, 2, 2)] * 2
    for _ in range(2):
        before = [alone.give().conv.weight.detach().clone() for alone in model]
        optimizer.step()
        seen += [alone.conv.weight.detach() - w for alone, w in zip(model, before, strict=True)]
    assert not any(torch.allclose(a, b) for i, a in enumerate(seen[2:]) for b in seen[2 + i + 1 :])


# State


def saved_and_loaded(state: dict[str, object], tmp_path: object) -> dict[str, object]:
    torch.save(state, tmp_path / "optimizer.pt")
    return torch.load(tmp_path / "optimizer.pt", weights_only=True)


def test_a_run_that_was_saved_and_resumed_continues_to_the_bit(tmp_path: object) -> None:
    options = {"lr": 0.1, "noise_std": 1e-2, "calibration_lr": 1.0}
    whole = network()
    train(whole, CSGD(whole, seed=11, **options), 6)
    first = network()
    optimizer = CSGD(first, seed=11, **options)
    train(first, optimizer, 3)
    state = saved_and_loaded(optimizer.state_dict(), tmp_path)
    resumed = network(seed=9)
    resumed.load_state_dict(first.state_dict())
    second = CSGD(resumed, lr=99.0, seed=12)  # everything comes from the state
    second.load_state_dict(state)
    train(resumed, second, range(3, 6))
    assert_same_bits(whole, resumed)


def test_a_state_saved_before_the_first_step_starts_the_same_noise() -> None:
    models = [network(), network()]
    optimizers = [CSGD(model, noise_std=0.1, seed=seed) for model, seed in zip(models, (1, 2), strict=True)]
    initial = deepcopy(optimizers[0].state_dict())
    train(deepcopy(models[1]), optimizers[1], 1)
    optimizers[1].load_state_dict(initial)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    assert_same_bits(*models)


def test_a_state_saved_on_a_device_that_is_not_here_loads() -> None:
    model = network()
    optimizer = CSGD(model, noise_std=0.1)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    elsewhere = state["noise"]["generators"].pop("cpu")
    state["noise"]["generators"]["cuda:7"] = elsewhere
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)
    assert set(optimizer.state_dict()["noise"]["generators"]) == {"cpu", "cuda:7"}


def test_every_rank_goes_on_with_the_noise_that_one_saved() -> None:
    """Ranks differ in the index of their device, and all load the state of the first."""
    first = NoiseSource(seed=3)
    first.generator(torch.device("cpu:0")).manual_seed(77)  # somewhere in its stream
    rank = NoiseSource(seed=3)
    rank.generator(torch.device("cpu:1"))
    fresh = NoiseSource(seed=3)
    for other in (rank, fresh):
        other.load_state_dict(first.state_dict())
        state = other.generator(torch.device("cpu:1")).get_state()
        assert torch.equal(state, first.generator(torch.device("cpu:0")).get_state())


def test_the_state_of_plain_sgd_loads() -> None:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    train(model, sgd, 2)
    optimizer = CSGD(model, noise_std=0.25, calibration_lr=0.5)
    optimizer.load_state_dict(sgd.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["noise_std"], group["calibration_lr"]) == (0.3, 0.25, 0.5)
    train(model, optimizer, 2)
    assert_normalised(model)


def test_a_copied_optimizer_continues_its_noise_to_the_bit() -> None:
    model = network()
    optimizer = CSGD(model, noise_std=0.1, seed=4)
    train(model, optimizer, 2)
    twin, twin_optimizer = deepcopy((model, optimizer))
    train(model, optimizer, 2)
    train(twin, twin_optimizer, 2)
    assert_same_bits(model, twin)


# Arguments


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "noise_std", "calibration_lr"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_negative_or_missing_number_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be 0 or above, got {value}"):
        CSGD(network(), **{name: value})
    with pytest.raises(ConfigurationError, match=f"{name} must be 0 or above, got {value}"):
        CSGD([{"params": network().parameters(), name: value}])


def test_an_unknown_calibration_update_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="descent, ascent, got 'sideways'"):
        CSGD(network(), calibration_update="sideways")


def test_groups_have_options_of_their_own() -> None:
    model = network()
    convs = [m for m in model if isinstance(m, CalibratedConv2d)]
    still = [p.detach().clone() for p in convs[0].parameters()]
    groups = [
        {"params": convs[0].parameters(), "lr": 0, "noise_std": 0, "calibration_lr": 0},
        {"params": [p for m in model[1:] for p in m.parameters()]},
    ]
    train(model, CSGD(groups, lr=0.1, calibration_lr=1.0), 2)
    for parameter, before in zip(convs[0].parameters(), still, strict=True):
        torch.testing.assert_close(parameter, before)
    assert not torch.allclose(convs[1].weight, network()[3].weight, atol=1e-3)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    model = network()
    before = deepcopy(model)
    model[3].requires_grad_(False)
    train(model, CSGD(model, noise_std=0.1), 1)
    assert_same_bits(model[3], before[3])


def test_a_closure_gives_its_loss() -> None:
    model = network()
    images, labels = batch(0)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    before = model[0].weight.detach().clone()
    assert CSGD(model, lr=0.1).step(closure).requires_grad
    assert not torch.equal(model[0].weight, before)
    assert CSGD(model).step() is None


# timm


def test_timm_builds_it_by_name_with_its_groups_and_options() -> None:
    model = timm.create_model("ccnn_resnet18_cifar")
    optimizer = create_optimizer_v2(model, opt="csgd", lr=0.2, weight_decay=1e-3, momentum=0.8, noise_std=0.5)
    assert isinstance(optimizer, CSGD)
    assert "csgd" in list_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(r)] == 0 for r in calibrations(model))
    assert decay[id(model.conv1.weight)] == 1e-3
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["noise_std"]) == (0.2, 0.8, 0.5)


def test_the_groups_of_timms_layer_decay_are_taken() -> None:
    model = timm.create_model("ccnn_resnet18_cifar")
    train(model, create_optimizer_v2(model, opt="csgd", lr=0.1, layer_decay=0.5), 1)
    assert_normalised(model)
