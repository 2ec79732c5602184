"""The networks against networks that know nothing of branches."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import ccnn_zoo
from ccnn_zoo.branchwise import Branchwise

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

# One of each class, small: name, arguments, size of the image.
SMALL = {
    "resnet": ("ccnn_resnet18", {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16)}, 64),
    "small resnet": ("ccnn_resnet18_cifar", {"layers": (2, 1, 1, 1)}, 16),
    "padded resnet": ("ccnn_resnet20_cifar", {"layers": (2, 1, 1)}, 16),
    "padded resnet, concatenated pooling": (
        "ccnn_resnet20_cifar",
        {"layers": (2, 1, 1), "global_pool": "catavgmax"},
        16,
    ),
    "wide resnet": ("ccnn_wrn28_4", {"depth": 10, "width": 1}, 16),
    "alexnet": ("ccnn_alexnet", {}, 64),
    "nin": ("ccnn_nin", {}, 16),
    "nin, concatenated pooling": ("ccnn_nin", {"global_pool": "catavgmax"}, 16),
    "vgg": ("ccnn_vgg16", {"model_cfg": [8, "M", 16, "M", 16, "M", 8, "M"]}, 32),
}


def build(kind: str, **kwargs: object) -> tuple[nn.Module, Tensor]:
    """Return a network in eval mode, no two of its channels alike, and two images."""
    name, arguments, size = SMALL[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **{**arguments, **kwargs}).eval()
    make_unlike(model)
    return model, torch.randn(2, 3, size, size)


def make_unlike(model: nn.Module) -> None:
    """Give normalisation layers random parameters and statistics: timm starts them equal, and some at zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)


def weights_of_branch(model: nn.Module, plain: nn.Module, k: int) -> dict[str, Tensor]:
    """Return what a plain network must hold to be branch k of ``model``."""
    state, weights = model.state_dict(), {}
    for key, like in plain.state_dict().items():
        if key.endswith("calibration"):
            weights[key] = like
            continue
        tensor, layer = state[key], key.rpartition(".")[0]
        if key.endswith(".weight") and f"{layer}.calibration" in state:
            tensor = state[f"{layer}.calibration"][k] * tensor
        elif tensor.shape != like.shape:
            tensor = tensor.chunk(model.branches)[k]
        weights[key] = tensor
    return weights


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_branches_equal_separate_plain_networks(kind):
    model, images = build(kind, branches=3)
    plain, _ = build(kind, branches=1)
    expected = []
    for k in range(3):
        plain.load_state_dict(weights_of_branch(model, plain, k))
        expected.append(plain(images))
    assert (expected[0] - expected[1]).abs().max() > 1e-4, "the branches must differ for this to say anything"
    torch.testing.assert_close(model.forward_branches(images), torch.stack(expected))
    apart = ccnn_zoo.split(model)
    torch.testing.assert_close(apart(images), model(images))
    for k, network in enumerate(apart.branches):
        own = weights_of_branch(model, plain, k)
        assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", sorted(SMALL.keys() - {"alexnet"}))
@pytest.mark.parametrize("merge", ["mean", "concat"])
@torch.no_grad()
def test_logits_are_the_mean_of_those_of_the_branches(kind, merge):
    model, images = build(kind, branches=3, merge=merge)
    logits = model.forward_branches(images)
    assert logits.shape == (3, 2, 5)
    torch.testing.assert_close(logits.mean(0), model(images))


@pytest.mark.parametrize("kind", sorted(kind for kind in SMALL if "nin" in kind or "resnet" in kind))
@torch.no_grad()
def test_branches_can_train_a_few_at_a_time(kind):
    model, images = build(kind, branches=4, drop_rate=0.0)
    model.train()
    torch.testing.assert_close(Branchwise(model, at_once=2)(images), model(images))


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_folding_changes_no_bit(kind):
    model, images = build(kind)
    folded = ccnn_zoo.fold(model)
    assert not any(isinstance(m, ccnn_zoo.CalibratedConv2d) for m in folded.modules())
    assert torch.equal(folded(images), model(images))
    assert torch.equal(folded.forward_branches(images), model.forward_branches(images))


@pytest.mark.parametrize("mixing", ["grouped", "dense"])
@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_folded_weights_load_into_a_network_built_folded(kind, mixing):
    model, images = build(kind, mixing=mixing)
    rebuilt, _ = build(kind, mixing=mixing, folded=True)
    rebuilt.load_state_dict(ccnn_zoo.fold(model).state_dict())
    assert torch.equal(rebuilt(images), model(images))


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_dense_mixing_lets_branches_read_each_other(kind):
    model, images = build(kind, mixing="dense")
    before = model.forward_branches(images)
    first = next(m for m in model.modules() if isinstance(m, ccnn_zoo.CalibratedConv2d))
    first.calibration[0].mul_(2)  # branch 0 alone
    assert not torch.allclose(model.forward_branches(images)[1], before[1])


@pytest.mark.parametrize(
    ("name", "plain", "size"), [("ccnn_resnet18", "resnet18", 64), ("ccnn_resnet50", "resnet50", 64)]
)
@torch.no_grad()
def test_one_branch_is_timms_network_to_the_bit(name, plain, size):
    torch.manual_seed(0)
    plain, ours = timm.create_model(plain).eval(), timm.create_model(name, branches=1).eval()
    make_unlike(plain)
    check_same_to_the_bit(ours, plain, size)


@torch.no_grad()
def test_one_branch_is_torchvisions_alexnet_to_the_bit():
    torch.manual_seed(0)
    check_same_to_the_bit(timm.create_model("ccnn_alexnet", branches=1).eval(), torchvision.models.alexnet().eval(), 96)


@torch.no_grad()
def test_one_branch_is_timms_vgg_to_the_bit():
    torch.manual_seed(0)
    ours = timm.create_model("ccnn_vgg16", branches=1).eval()
    plain = timm.create_model("vgg16_bn", device="meta").eval()
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if "calibration" not in k}, assign=True)
    make_unlike(plain)
    check_same_to_the_bit(ours, plain, 64)


def check_same_to_the_bit(ours: nn.Module, plain: nn.Module, size: int) -> None:
    missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
    assert all(key.endswith("calibration") for key in missing)
    assert unexpected == []
    images = torch.randn(2, 3, size, size)
    assert torch.equal(ours(images), plain(images))


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    statistics = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *statistics, eps=1e-5)


@torch.no_grad()
def test_padded_resnet_is_that_of_he_et_al():
    """Section 4.2: identity shortcuts in all cases, of which zero padding adds the channels."""
    model, images = build("padded resnet", branches=1, layers=(3, 3, 3))
    state = model.state_dict()
    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], padding=1), state, "bn1"))
    for stage in (1, 2, 3):
        for block in range(3):
            prefix, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{prefix}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, state, f"{prefix}.bn1")), state[f"{prefix}.conv2.weight"], padding=1)
            shortcut, missing = x[:, :, ::stride, ::stride], y.shape[1] - x.shape[1]
            zeros = shortcut.new_zeros(len(shortcut), missing // 2, *shortcut.shape[2:])
            x = F.relu(norm(y, state, f"{prefix}.bn2") + torch.cat([zeros, shortcut, zeros], 1))
    expected = F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(images), expected)


@torch.no_grad()
def test_wide_resnet_is_that_of_zagoruyko_and_komodakis():
    model, images = build("wide resnet", branches=1, depth=16, width=2, wide_stem=False)
    state = model.state_dict()
    x = F.conv2d(images, state["stem.conv.weight"], padding=1)
    for stage in range(3):
        for block in range(2):
            prefix, stride = f"stages.{stage}.blocks.{block}", 2 if stage > 0 and block == 0 else 1
            activated = F.relu(norm(x, state, f"{prefix}.norm1"))
            y = F.conv2d(activated, state[f"{prefix}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, state, f"{prefix}.norm2")), state[f"{prefix}.conv2.weight"], padding=1)
            projection = f"{prefix}.downsample.conv.weight"
            x = y + (F.conv2d(activated, state[projection], stride=stride) if block == 0 else x)
    x = F.relu(norm(x, state, "norm")).mean((2, 3))
    torch.testing.assert_close(model(images), F.linear(x, state["head.fc.weight"], state["head.fc.bias"]))


@torch.no_grad()
def test_network_in_network_classifies_as_its_last_convolution_before_the_pooling():
    model, images = build("nin", branches=1)
    w, b = model.head.fc.weight, model.head.fc.bias
    maps = F.conv2d(model.forward_features(images), w[:, :, None, None], b)
    torch.testing.assert_close(model(images), maps.mean((2, 3)))


@pytest.mark.parametrize("kind", ["nin", "alexnet"])
@torch.no_grad()
def test_networks_without_normalisation_keep_their_scale(kind):
    """Without rescaling, features would shrink K-fold a layer: 1e4 times in NIN, 300 times in AlexNet."""
    calibrated, images = build(kind, branches=4)
    plain, _ = build(kind, branches=1)
    ratio = calibrated.forward_features(images).std() / plain.forward_features(images).std()
    assert 0.2 < ratio < 5
