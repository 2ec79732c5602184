"""One real architecture of every family: K branches against K separate plain networks, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from separate_networks import load_branch, randomize
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ccnn_zoo import CalibratedConv2d, calibrate, fold, split
from ccnn_zoo.errors import CalibrationError

BRANCHES = 3
THIN = (16, 32, 48, 64)  # channels: what a family does with them does not depend on how many there are
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: timm.create_model("resnet18", channels=THIN, num_classes=5),
    "residual, average pooling in the shortcut": lambda: timm.create_model("resnet18d", channels=THIN, num_classes=5),
    "pre-activation": lambda: timm.create_model("resnetv2_18", num_classes=5),
    "grouped": lambda: timm.create_model("resnext26ts", num_classes=5),
    "squeeze and excitation": lambda: timm.create_model("seresnet18", channels=THIN, num_classes=5),
    "RegNet": lambda: timm.create_model("regnety_002", num_classes=5),
    "depthwise": lambda: timm.create_model("mobilenetv2_050", num_classes=5),
    "depthwise, hard-swish, convolution after pooling": lambda: timm.create_model(
        "mobilenetv3_small_050", num_classes=5
    ),
    "TensorFlow's padding": lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5),
    "several readers of the image": lambda: timm.create_model("repvgg_a0", num_classes=5),
    "concatenation": lambda: timm.models.densenet.DenseNet(
        growth_rate=8, block_config=(2, 3), num_classes=5
    ),
    "concatenation, torchvision": lambda: torchvision.models.DenseNet(8, (2, 3), 16, num_classes=5),
    "linear layers after flattening": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(300, 20), nn.ReLU(inplace=True), nn.Linear(20, 5),
    ),
    "group normalisation": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, norm_layer=lambda c: nn.GroupNorm(8, c)
    ),
    "frozen batch normalisation": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, norm_layer=FrozenBatchNorm2d
    ),
    "PReLU": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ),
}  # fmt: skip
DENSE = {"residual", "concatenation", "several readers of the image", "PReLU"}  # in the ordinary tests, that is
SLOW_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name: timm.create_model(name, num_classes=5)
    for name in (
        "resnet50", "resnext50_32x4d", "efficientnet_b0", "tf_efficientnet_b0", "densenet121", "vgg11_bn",
        "seresnext26d_32x4d", "xception41", "hrnet_w18_small", "mobileone_s0",
    )
} | {"torchvision's AlexNet": lambda: torchvision.models.alexnet(num_classes=5)}  # fmt: skip
ALL_FAMILIES = [
    *FAMILIES.items(),
    *(pytest.param(*item, marks=pytest.mark.slow, id=item[0]) for item in SLOW_FAMILIES.items()),
]


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)


def settled(model: nn.Module) -> nn.Module:
    """Random weights everywhere, and statistics of this data, so that activations neither vanish nor explode."""
    randomize(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images(next(model.parameters()).dtype))
    return model.eval()


def what_reaches_the_classifier(model: nn.Module, x: Tensor) -> Tensor:
    """The input of the first linear layer, or of a convolution in its place: (N, F), or (N, K * F) of all branches."""
    seen: list[Tensor] = []
    classifier = next((m for m in model.modules() if isinstance(m, nn.Linear)), None) or model.get_classifier()
    with classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())), torch.no_grad():
        model(x)
    return seen[0]


@pytest.mark.parametrize(("family", "build"), ALL_FAMILIES, ids=[*FAMILIES, *SLOW_FAMILIES])
def test_branches_of_a_family_equal_separate_plain_networks(family: str, build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = build().double().eval()
    model = settled(calibrate(plain, BRANCHES, diversity=1.0))
    x = images(torch.float64)
    together = what_reaches_the_classifier(model, x)
    separate = torch.stack([what_reaches_the_classifier(load_branch(plain, model, k), x) for k in range(BRANCHES)])
    assert (separate.std(0).mean() / separate.abs().mean()).item() > 1e-3, "the branches must differ"
    torch.testing.assert_close(together, torch.cat(list(separate), 1), rtol=1e-6, atol=1e-6 * separate.abs().max())
    with torch.no_grad():
        alone = torch.stack([load_branch(plain, model, k)(x) for k in range(BRANCHES)])
        torch.testing.assert_close(model.forward_branches(x), alone, rtol=1e-6, atol=1e-6 * alone.abs().max().item())
        apart, expected = split(model), model(x)
        for k, network in enumerate(apart.branches):
            own = load_branch(plain, model, k).state_dict()
            assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
            assert torch.equal(network(x), separate[k])
        torch.testing.assert_close(apart(x), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("family", "build", "mixing"),
    [
        pytest.param(family, build, mixing, id=f"{family}-{mixing}", marks=[pytest.mark.slow] * slow)
        for family, build in FAMILIES.items()
        for mixing, slow in {"grouped": False, "dense": family not in DENSE}.items()
    ],
)
def test_a_calibrated_family_starts_as_the_same_function_and_folds_to_the_bit(
    family: str, build: Callable[[], nn.Module], mixing: str
) -> None:
    torch.manual_seed(0)
    # In float64: these random networks blow up the rounding errors of float32.
    plain = settled(build().double())
    model = calibrate(plain, 2, mixing=mixing)
    x = images(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9 * plain(x).abs().max().item())
        model, x = randomize(model.float()), images()
        folded = fold(model)
        assert torch.equal(folded(x), model(x))
    assert not any(isinstance(module, CalibratedConv2d) for module in folded.modules())


class Block(nn.Module):
    """A convolution, with some code before its output."""

    def __init__(self, code: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, channels, 3, padding=1)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.conv(x))


def network_with(inside: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), inside, nn.ReLU(inplace=True), nn.Conv2d(width, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


CODE_THAT_MIXES = {
    "concatenate": (lambda x: torch.cat([x, x.relu()], 1), 16),
    "shuffle": (lambda x: nn.functional.channel_shuffle(x, 2), 8),
    "split": (lambda x: x.chunk(2, 1)[0], 4),
    "attend over channels": (lambda x: x * x.mean((2, 3), keepdim=True).softmax(1), 8),
    "mean of channels": (lambda x: x - x.mean(1, keepdim=True), 8),
    "flip channels": (lambda x: x.flip(1), 8),
    "roll channels": (lambda x: x.roll(1, 1), 8),
}


@pytest.mark.parametrize(("code", "width"), CODE_THAT_MIXES.values(), ids=list(CODE_THAT_MIXES))
def test_code_that_mixes_channels_is_found_by_running_and_named(code: Callable[[Tensor], Tensor], width: int) -> None:
    with pytest.raises(CalibrationError, match=r"2 \(Block\) mixes the channels"):
        calibrate(network_with(Block(code), width), branches=2)


@pytest.mark.parametrize("code", [torch.sigmoid, lambda x: x * x.mean((2, 3), keepdim=True), lambda x: x + x.flip(3)])
def test_code_that_treats_channels_alike_is_let_through(code: Callable[[Tensor], Tensor]) -> None:
    calibrate(network_with(Block(code)), branches=2)


REFUSED_LAYERS = [
    (nn.LocalResponseNorm(5), r"2 \(LocalResponseNorm\).*another branch"),
    (nn.LayerNorm([8, 62, 62], elementwise_affine=False), r"2 \(LayerNorm\) normalises over the channels"),
    (nn.ChannelShuffle(2), r"2 \(ChannelShuffle\) mixes"),
    (timm.layers.StdConv2d(8, 8, 3), r"2 \(StdConv2d\).*more than convolve"),
    (timm.layers.EcaModule(8), r"2\.conv \(Conv1d\).*no calibrated form"),
    (timm.layers.BlurPool2d(8), r"2 \(BlurPool2d\).*filt"),
    (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), r"2 \(Parametr\w+\).*more than convolve"),
    (nn.ConvTranspose2d(8, 8, 3), r"2 \(ConvTranspose2d\).*no calibrated form"),
]


@pytest.mark.parametrize(("layer", "why"), REFUSED_LAYERS, ids=lambda value: type(value).__name__)
def test_a_layer_without_a_calibrated_form_is_refused_by_name_with_the_reason(layer: nn.Module, why: str) -> None:
    with pytest.raises(CalibrationError, match=why):
        calibrate(network_with(layer), branches=2)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", r"the model \(VisionTransformer\).*cls_token"),
        ("convnext_atto", r"stem\.1 \(LayerNorm2d\) normalises over the channels"),
        ("nf_regnet_b0", r"stem\.conv \(ScaledStdConv2d\)"),
        ("res2net50_26w_4s", r"layer1\.0.* mixes the channels"),
        ("skresnet18", r"layer1\.0\.conv1.* mixes the channels"),
        ("dla34", r"level2\.root \(DlaRoot\) mixes the channels"),
        ("ese_vovnet19b_dw", r"stages\.0\.blocks\.0.* mixes the channels"),
        ("gcresnext26ts", r"normalises over the channels"),
    ],
)
def test_a_family_that_cannot_be_calibrated_is_refused_by_name_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(CalibrationError, match=why):
        calibrate(timm.create_model(name), branches=2)


def test_channel_shuffle_of_torchvision_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"stage2\.\d \(InvertedResidual\) mixes the channels"):
        calibrate(torchvision.models.shufflenet_v2_x0_5(), branches=2)


def test_a_weight_that_a_hook_computes_is_refused_by_name() -> None:
    model = network_with(Block(torch.relu))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[2].conv)
    with pytest.raises(CalibrationError, match=r"2\.conv computes its weight"):
        calibrate(model, branches=2)


def test_hooks_that_would_be_lost_are_refused_by_name() -> None:
    model = network_with(Block(torch.relu))
    model[2].conv.register_forward_hook(lambda *_: None)
    with pytest.raises(CalibrationError, match=r"2\.conv has hooks"):
        calibrate(model, branches=2)


def test_a_first_layer_with_groups_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match="0 reads the image in 3 groups"):
        calibrate(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1)), branches=2)


def test_classes_without_a_layer_in_which_branches_could_meet_are_refused() -> None:
    with pytest.raises(CalibrationError, match="SqueezeNet has 1000 classes and no"):
        calibrate(torchvision.models.squeezenet1_1(), branches=2)


def test_a_second_head_beside_the_classifier_is_refused() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.conv(x).mean((2, 3))
            return self.first(features), self.second(features)

    with pytest.raises(CalibrationError, match=r"second \(Linear\)"):
        calibrate(TwoHeads(), branches=2)


def test_code_after_the_classifier_that_reads_all_features_is_found_by_running() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            features = self.conv(x).mean((2, 3))
            return self.fc(features) * features.norm(dim=1, keepdim=True)

    with pytest.raises(CalibrationError, match="Scaled would not compute the function"):
        calibrate(Scaled(), branches=2)


def test_a_convolution_hidden_from_the_tree_is_found_by_running() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Conv2d(8, 8, 3)]

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden[0](x)

    with pytest.raises(CalibrationError, match=r"2 \(Hidden\)"):
        calibrate(network_with(Hidden()), branches=2)


def test_a_convolutional_classifier_lets_the_branches_meet() -> None:
    plain = settled(timm.create_model("resnet18", num_classes=0))
    plain.fc = nn.Conv2d(512, 5, 1)
    plain.num_classes = 5
    plain.global_pool = timm.layers.SelectAdaptivePool2d(pool_type="avg", flatten=False)
    for merge in ("mean", "max", "concat"):
        model = calibrate(plain, 2, merge)
        torch.testing.assert_close(model(images()), plain(images()), rtol=1e-4, atol=1e-4)
        assert model(images()).shape == (2, 5, 1, 1)


def test_without_a_classifier_the_features_of_all_branches_come_out_branch_major() -> None:
    plain = settled(timm.create_model("resnet18", num_classes=0)).double()
    model = calibrate(plain, 2, diversity=1.0)
    separate = [load_branch(plain, model, k)(images(torch.float64)) for k in range(2)]
    torch.testing.assert_close(model(images(torch.float64)), torch.cat(separate, 1))


def test_feature_extractors_of_timm_are_calibrated_at_every_level() -> None:
    plain = settled(timm.create_model("resnet18", features_only=True)).double()
    model = calibrate(plain, 2, diversity=1.0)
    separate = [load_branch(plain, model, k)(images(torch.float64)) for k in range(2)]
    for together, parts in zip(model(images(torch.float64)), zip(*separate, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(parts, 1))
    assert model.feature_info.channels() == [2 * channels for channels in plain.feature_info.channels()]


def test_checking_leaves_network_and_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would seed the devices' generators too, which nothing would restore.
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("torch.manual_seed was called"))
    plain = settled(timm.create_model("resnet18", channels=THIN, num_classes=5)).train()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    state = torch.get_rng_state()
    calibrate(plain, branches=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.training
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


def test_a_network_of_one_input_size_says_which_argument_to_give() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 18 * 18, 2))
    with pytest.raises(CalibrationError, match="give input_size="):
        calibrate(plain, branches=2)
    calibrate(plain, branches=2, input_size=(3, 20, 20))
