"""The calibrated convolution against plain ones, and the classifier in which branches meet."""

from __future__ import annotations

from copy import copy, deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ccnn_zoo import CSGD, CalibratedConv2d
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchLinear
from ccnn_zoo.optim import CALIBRATION, SHARED_WEIGHT, get_role

BRANCHES = (1, 2, 4, 8)
GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "oblong": {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": 4, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 5, "padding": "valid", "bias": True},
    "bias": {"kernel_size": 3, "padding": 1, "bias": True},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "bias": True},
    "pointwise": {"kernel_size": 1},
}
SHARED = {name: kwargs for name, kwargs in GEOMETRIES.items() if "groups" not in kwargs}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def layer(branches: int, shared_input: bool = False, **kwargs: object) -> CalibratedConv2d:
    return CalibratedConv2d(4, 8, branches=branches, shared_input=shared_input, **kwargs)


def plain_convolution(kernels: torch.Tensor, conv: CalibratedConv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, kernels, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_branches_equal_separate_convolutions_with_the_effective_kernels(geometry: str, branches: int) -> None:
    conv = layer(branches, **GEOMETRIES[geometry]).double()
    features = torch.randn(branches, 2, 4, 9, 9, dtype=torch.float64)
    separate = [plain_convolution(r * conv.weight, conv, x) for r, x in zip(conv.calibration, features, strict=True)]
    torch.testing.assert_close(conv(torch.cat(list(features), 1)), torch.cat(separate, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("geometry", SHARED)
def test_with_shared_input_every_branch_reads_the_one_image(geometry: str, branches: int) -> None:
    conv = layer(branches, shared_input=True, **SHARED[geometry]).double()
    image = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    separate = [plain_convolution(r * conv.weight, conv, image) for r in conv.calibration]
    torch.testing.assert_close(conv(image), torch.cat(separate, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared_input", [False, True])
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("geometry", SHARED)
def test_fusing_changes_no_bit(geometry: str, branches: int, shared_input: bool) -> None:
    conv = layer(branches, shared_input, **SHARED[geometry])
    before = deepcopy(conv.state_dict())
    plain = conv.fuse()
    x = torch.randn(2, 4 if shared_input else 4 * branches, 9, 9)
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain(x), conv(x))
    assert plain.weight.shape == conv.effective_weight().shape
    assert all(torch.equal(conv.state_dict()[name], value) for name, value in before.items())
    plain.weight.data.zero_()
    assert conv.weight.abs().sum() > 0, "the plain layer must not share memory with the calibrated one"


@pytest.mark.parametrize("geometry", ["groups", "depthwise"])
@pytest.mark.parametrize("branches", BRANCHES)
def test_fusing_grouped_layers_changes_no_bit(geometry: str, branches: int) -> None:
    conv = layer(branches, **GEOMETRIES[geometry])
    plain = conv.fuse()
    x = torch.randn(2, 4 * branches, 9, 9)
    assert torch.equal(plain(x), conv(x))
    assert plain.groups == branches * conv.groups


@pytest.mark.parametrize("mode", [True, False])
def test_fuse_keeps_mode_dtype_and_what_is_trained(mode: bool) -> None:
    conv = layer(2, kernel_size=3, bias=True).to(torch.float64).train(mode).requires_grad_(False)
    plain = conv.fuse()
    assert plain.training is mode
    assert plain.weight.dtype == plain.bias.dtype == torch.float64
    assert not plain.weight.requires_grad
    assert not plain.bias.requires_grad


@pytest.mark.parametrize("kwargs", [{}, {"groups": 2}, {"shared_input": True}, {"stride": 2, "padding": 1}])
def test_gradients_agree_with_finite_differences(kwargs: dict[str, object]) -> None:
    conv = CalibratedConv2d(2, 4, 3, bias=True, branches=3, dtype=torch.float64, **kwargs)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in conv.named_parameters()}
    x = torch.randn(1, 2 if conv.shared_input else 6, 4, 4, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(conv, dict(zip(parameters, values, strict=True)), (x,))

    assert set(parameters) == {"weight", "calibration", "bias"}
    assert torch.autograd.gradcheck(output, (x, *parameters.values()))


def test_gradients_of_w_and_r_follow_from_those_of_separate_convolutions_by_the_chain_rule() -> None:
    conv = layer(3, kernel_size=3, padding=1, bias=True).double()
    features = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64)
    cotangent = torch.randn(3, 2, 8, 6, 6, dtype=torch.float64)
    conv(torch.cat(list(features), 1)).backward(torch.cat(list(cotangent), 1))
    kernels = [(r * conv.weight).detach().requires_grad_() for r in conv.calibration]
    biases = [conv.bias.detach().clone().requires_grad_() for _ in kernels]
    for h, b, x, v in zip(kernels, biases, features, cotangent, strict=True):
        F.conv2d(x, h, b, padding=1).backward(v)
    weight_grad = sum(r * h.grad for r, h in zip(conv.calibration, kernels, strict=True))  # Eq. 1-2
    calibration_grad = torch.stack([(conv.weight * h.grad).sum((0, 1)) for h in kernels])
    torch.testing.assert_close(conv.weight.grad, weight_grad)
    torch.testing.assert_close(conv.calibration.grad, calibration_grad)
    torch.testing.assert_close(conv.bias.grad, sum(b.grad for b in biases))


def test_one_branch_is_a_plain_convolution_to_the_bit() -> None:
    conv = layer(1, kernel_size=3, padding=1, bias=True)
    plain = nn.Conv2d(4, 8, 3, padding=1)
    plain.load_state_dict({name: value for name, value in conv.state_dict().items() if name != "calibration"})
    inputs = [torch.randn(2, 4, 7, 7, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [conv(inputs[0]), plain(inputs[1])]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(conv.weight.grad, plain.weight.grad)
    assert torch.equal(conv.bias.grad, plain.bias.grad)
    assert torch.equal(conv.calibration, torch.ones(1, 3, 3))


def test_it_is_a_convolution_whose_attributes_are_those_of_one_branch() -> None:
    conv = CalibratedConv2d(4, 8, 3, groups=2, branches=3)
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (4, 8, 2)
    assert conv.weight.shape == (8, 2, 3, 3)
    assert conv.calibration.shape == (3, 3, 3)
    assert conv.effective_weight().shape == (24, 2, 3, 3)
    assert conv.bias is None
    assert "branches=3" in repr(conv)
    conv.load_state_dict(nn.Conv2d(4, 8, 3, groups=2, bias=False).state_dict(), strict=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("branches", BRANCHES)
def test_r_starts_non_negative_and_normalised_and_differs_between_branches(branches: int, dtype: torch.dtype) -> None:
    conv = layer(branches, kernel_size=5).to(dtype)
    conv.reset_calibration()
    r = conv.calibration
    assert (r >= 0).all()
    tolerance = max(1e-6, branches * torch.finfo(dtype).eps)
    torch.testing.assert_close(r.double().sum(0), torch.ones(5, 5, dtype=torch.float64), rtol=0, atol=tolerance)
    if branches > 1:
        assert r.std(0).min() > 0


def test_diversity_moves_r_from_uniform_to_the_random_start_of_the_paper() -> None:
    conv = layer(4, kernel_size=3)
    spread = {}
    for diversity in (0.0, 0.25, 1.0):
        torch.manual_seed(1)
        conv.reset_calibration(diversity)
        spread[diversity] = (conv.calibration.detach() - 0.25).clone()
        torch.testing.assert_close(conv.calibration.sum(0), torch.ones(3, 3))
    assert torch.equal(spread[0.0], torch.zeros(4, 3, 3))
    torch.testing.assert_close(spread[0.25], 0.25 * spread[1.0])


@pytest.mark.parametrize("branches", [0, -1, 1.5, True, "2", None])
def test_branches_below_one_are_refused_by_value(branches: object) -> None:
    for build in (lambda: CalibratedConv2d(4, 8, 3, branches=branches), lambda: BranchLinear(4, 8, branches=branches)):
        with pytest.raises(ConfigurationError, match=f"at least 1.*got {branches!r}"):
            build()


def test_integers_of_numpy_are_refused_where_they_would_be_kept() -> None:
    with pytest.raises(ConfigurationError, match="branches must be an integer of at least 1"):
        CalibratedConv2d(2, 2, 3, branches=np.int64(2))


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_diversity_outside_its_range_is_refused(diversity: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"diversity must be in \[0, 1\], got {diversity}"):
        layer(2, kernel_size=3).reset_calibration(diversity)


def test_groups_of_a_shared_input_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="groups=2"):
        layer(2, shared_input=True, kernel_size=3, groups=2)


def roles(conv: CalibratedConv2d) -> tuple[str | None, ...]:
    return get_role(conv.weight), get_role(conv.calibration), get_role(conv.bias)


def assigned(conv: CalibratedConv2d) -> CalibratedConv2d:
    conv.load_state_dict({name: value.clone() for name, value in conv.state_dict().items()}, assign=True)
    return conv


def overwritten(conv: CalibratedConv2d) -> CalibratedConv2d:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return conv.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def swapped(conv: CalibratedConv2d) -> CalibratedConv2d:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        conv.half().load_state_dict(conv.state_dict())
        return conv
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "pass_through",
    [
        copy,
        deepcopy,
        lambda conv: conv.to(torch.float64),
        lambda conv: conv.half(),
        lambda conv: conv.to("meta"),
        lambda conv: conv.to_empty(device="cpu"),
        lambda conv: conv.to(memory_format=torch.channels_last),
        lambda conv: conv.requires_grad_(False).requires_grad_(),
        assigned,
        overwritten,
        swapped,
        lambda conv: deepcopy(nn.Sequential(conv)).half()[0],
        lambda conv: torch.nn.utils.convert_conv2d_weight_memory_format(conv, torch.channels_last),
    ],
)
def test_parameters_keep_their_roles_however_the_layer_is_moved_or_copied(pass_through: object) -> None:
    conv = pass_through(layer(2, kernel_size=3, bias=True))
    assert roles(conv) == (SHARED_WEIGHT, CALIBRATION, None)


def test_vectors_of_parameters_load_without_touching_the_roles() -> None:
    conv = layer(2, kernel_size=3, bias=True)
    vector = nn.utils.parameters_to_vector(conv.parameters())
    nn.utils.vector_to_parameters(vector.clone(), conv.parameters())
    assert roles(conv) == (SHARED_WEIGHT, CALIBRATION, None)


def test_a_copied_layer_is_still_projected_by_csgd() -> None:
    conv = assigned(deepcopy(layer(3, kernel_size=3)).double())
    conv(torch.randn(2, 12, 5, 5, dtype=torch.float64)).square().sum().backward()
    CSGD(conv, lr=0.1, calibration_lr=0.01).step()
    torch.testing.assert_close(conv.calibration.sum(0), torch.ones(3, 3, dtype=torch.float64))


def test_the_classifier_gives_the_mean_of_the_logits_of_the_branches() -> None:
    head = BranchLinear(5, 3, branches=4).double()
    features = torch.randn(4, 2, 5, dtype=torch.float64)
    logits = torch.stack([F.linear(x, head.weight, head.bias) for x in features])
    torch.testing.assert_close(head(torch.cat(list(features), 1)), logits.mean(0))


def test_the_classifier_reads_the_greatest_of_the_branches() -> None:
    head = BranchLinear(5, 3, branches=4, merge="max")
    features = torch.randn(4, 2, 5)
    torch.testing.assert_close(head(torch.cat(list(features), 1)), F.linear(features.max(0)[0], head.weight, head.bias))


def test_the_classifier_reads_all_branches_side_by_side() -> None:
    head = BranchLinear(5, 3, branches=4, merge="concat")
    features = torch.randn(2, 20)
    assert head.weight.shape == (3, 20)
    assert torch.equal(head(features), F.linear(features, head.weight, head.bias))


def test_an_unknown_merge_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"mean, max, concat, probability, got 'sum'"):
        BranchLinear(5, 3, merge="sum")
