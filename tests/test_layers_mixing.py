"""Dense mixing of the calibrated convolution, and what each branch alone says at the classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ccnn_zoo import CSGD, CalibratedConv2d, calibrate, fold
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, concat_branches

BRANCHES = (1, 2, 4, 8)
GEOMETRIES = [{"padding": 1}, {"stride": 2}, {"dilation": 2, "bias": True}, {"padding": "same", "bias": True}]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def dense(branches: int, **kwargs: object) -> CalibratedConv2d:
    return CalibratedConv2d(3, 5, 3, branches=branches, mixing="dense", **kwargs)


# The layer


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_branch_sums_its_slices_over_the_features_of_all(geometry: dict[str, object], branches: int) -> None:
    conv = dense(branches, **geometry).double()
    features = torch.randn(branches, 2, 3, 9, 9, dtype=torch.float64)
    how = (conv.stride, conv.padding, conv.dilation)
    expected = []
    for r in conv.calibration:
        branch = sum(F.conv2d(x, r * conv.weight[:, 3 * j : 3 * (j + 1)], None, *how) for j, x in enumerate(features))
        expected.append(branch if conv.bias is None else branch + conv.bias[:, None, None])
    torch.testing.assert_close(conv(torch.cat(list(features), 1)), torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared_input", [False, True])
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fusing_a_dense_layer_changes_no_bit(geometry: dict[str, object], branches: int, shared_input: bool) -> None:
    conv = dense(branches, shared_input=shared_input, **geometry)
    plain = conv.fuse()
    x = torch.randn(2, 3 if shared_input else 3 * branches, 9, 9)
    assert type(plain) is nn.Conv2d
    assert (plain.in_channels, plain.out_channels, plain.groups) == (x.shape[1], 5 * branches, 1)
    assert torch.equal(plain(x), conv(x))


def test_the_weight_of_a_dense_layer_reads_all_branches_and_its_attributes_are_those_of_one() -> None:
    conv = dense(4)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 5, 1)
    assert conv.weight.shape == (5, 12, 3, 3)
    assert conv.effective_weight().shape == (20, 12, 3, 3)
    assert "mixing='dense'" in repr(conv)


def test_the_first_layer_is_the_same_in_both_mixings() -> None:
    conv = dense(4, shared_input=True)
    grouped = CalibratedConv2d(3, 5, 3, branches=4, shared_input=True)
    grouped.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 7, 7)
    assert torch.equal(conv(x), grouped(x))


def test_with_one_branch_both_mixings_are_the_plain_convolution() -> None:
    conv = dense(1)
    x = torch.randn(2, 3, 7, 7)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight))


def test_gradients_of_a_dense_layer_agree_with_finite_differences() -> None:
    conv = CalibratedConv2d(2, 2, 2, bias=True, branches=3, mixing="dense", dtype=torch.float64)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in conv.named_parameters()}
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(conv, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *parameters.values()))


def test_csgd_projects_the_calibration_of_a_dense_layer() -> None:
    conv = dense(3)
    conv(torch.randn(2, 9, 6, 6)).square().sum().backward()
    CSGD(conv, lr=0.1).step()
    assert (conv.calibration >= 0).all()
    torch.testing.assert_close(conv.calibration.sum(0), torch.ones(3, 3), rtol=0, atol=1e-6)


def test_groups_within_a_dense_layer_are_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"groups=3.*mixing='grouped'"):
        CalibratedConv2d(3, 6, 3, groups=3, branches=2, mixing="dense")


def test_an_unknown_mixing_is_refused_by_name() -> None:
    for build in (
        lambda: CalibratedConv2d(3, 5, 3, mixing="sparse"),
        lambda: calibrate(nn.Sequential(nn.Conv2d(3, 4, 1)), branches=2, mixing="sparse"),
    ):
        with pytest.raises(ConfigurationError, match="grouped, dense, got 'sparse'"):
            build()


# Networks


def plain_network(groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=True),
        nn.Conv2d(6, 6, 3, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@pytest.mark.parametrize("branches", BRANCHES)
def test_a_dense_network_starts_as_the_same_function_and_folds_to_the_bit(branches: int, merge: str) -> None:
    plain, x = plain_network(), torch.randn(2, 3, 16, 16)
    model = calibrate(plain, branches, merge, mixing="dense")
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    spread = calibrate(plain, branches, merge, mixing="dense", diversity=1.0)
    folded = fold(spread)
    assert torch.equal(folded(x), spread(x))
    assert {m.groups for m in folded.modules() if isinstance(m, nn.Conv2d)} == {1}
    for name in ("3", "4"):
        trained = plain.get_submodule(name).weight
        torch.testing.assert_close(model.get_submodule(name).weight, trained.repeat(1, branches, 1, 1))


def test_convolutions_with_groups_stay_grouped_in_a_dense_network() -> None:
    plain, x = plain_network(groups=3), torch.randn(2, 3, 16, 16)
    model = calibrate(plain, branches=2, mixing="dense")
    assert [model[i].mixing for i in (0, 3, 4)] == ["grouped", "dense", "grouped"]
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


def test_from_scratch_the_slices_of_a_dense_weight_differ_but_are_drawn_alike() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3))
    weight = calibrate(plain, branches=3, mixing="dense", rescale=False)[2].weight
    slices = weight.split(16, dim=1)
    assert torch.equal(slices[0], plain[2].weight)
    for other in slices[1:]:
        assert not torch.equal(other, slices[0])
        assert torch.equal(other.flatten().sort()[0], slices[0].flatten().sort()[0])


def test_from_scratch_without_normalisation_a_dense_network_keeps_the_scale_of_activations() -> None:
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(3)]
    for conv in layers:
        nn.init.normal_(conv.weight, std=(1 / (64 * 9)) ** 0.5)
    plain, x = nn.Sequential(nn.Conv2d(3, 64, 1), *layers), torch.randn(4, 3, 12, 12)
    model = calibrate(plain, branches=4, mixing="dense", rescale=False)
    assert model(x).std().item() == pytest.approx(plain(x).std().item(), rel=0.3)


# The classifier


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_the_mean_of_what_the_branches_say_is_what_the_classifier_says(merge: str, branches: int, bias: bool) -> None:
    head = BranchLinear(5, 3, bias=bias, branches=branches, merge=merge).double()
    for shape in ((2,), (2, 4), ()):
        features = torch.randn(*shape, 5 * branches, dtype=torch.float64)
        logits = head.forward_branches(features)
        assert logits.shape == (branches, *shape, 3)
        torch.testing.assert_close(logits.mean(0), head(features))


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_a_branch_says_what_the_classifier_says_of_its_features_alone(merge: str) -> None:
    head = BranchLinear(5, 3, branches=4, merge=merge)
    features = torch.randn(4, 2, 5)
    expected = torch.stack([F.linear(x, head.weight, head.bias) for x in features])
    torch.testing.assert_close(head.forward_branches(torch.cat(list(features), 1)), expected)


def test_with_concat_a_branch_says_k_times_what_it_adds() -> None:
    head = BranchLinear(5, 3, branches=2, merge="concat")
    first, second = torch.randn(2, 2, 5)
    logits = head.forward_branches(torch.cat([first, second], 1))
    torch.testing.assert_close(logits[0], 2 * first @ head.weight[:, :5].T + head.bias)
    torch.testing.assert_close(logits[1], 2 * second @ head.weight[:, 5:].T + head.bias)


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
def test_a_convolutional_classifier_is_the_linear_one_at_every_position(merge: str) -> None:
    linear, conv = BranchLinear(4, 3, branches=2, merge=merge), BranchConv2d(4, 3, 1, branches=2, merge=merge)
    conv.load_state_dict({"weight": linear.weight[..., None, None], "bias": linear.bias})
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(conv(x), linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_concatenated_features_of_one_branch_stand_together() -> None:
    first, second = torch.randn(3, 2, 4, 5, 5), torch.randn(3, 2, 6, 5, 5)
    joined = concat_branches([torch.cat(list(first), 1), torch.cat(list(second), 1)], branches=3)
    expected = [torch.cat([a, b], 1) for a, b in zip(first, second, strict=True)]
    assert torch.equal(joined, torch.cat(expected, 1))
