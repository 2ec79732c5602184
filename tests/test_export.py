"""Export: the file alone gives the answers of the unfolded network, or there is no file."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ccnn_zoo
from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, ExportError, RepositoryError
from ccnn_zoo.export import BATCH_SIZES, TOLERANCE, ExportReport, _convert, metadata_of, to_onnx

GREY = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.25,), "label_names": [f"digit {i}" for i in range(10)]}


def unsettle(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and parameters that are far from the identity, as training does."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            module.weight.data.uniform_(-1.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model


def thin(branches: int = 2, merge: str = "mean", blocks: int = 1) -> nn.Module:
    """The paper's thin ResNet, of which two blocks a stage make the ResNet-18."""
    torch.manual_seed(branches)
    arguments = {"in_chans": 1, "layers": 4 * (blocks,), "pretrained_cfg_overlay": GREY}
    return unsettle(timm.create_model("ccnn_resnet18_cifar", branches=branches, merge=merge, **arguments))


def pictures(number: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(number))


class Small(nn.Module):
    """The least that timm would call a classifier; ``spoil`` is what goes wrong in it."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = nn.Identity()) -> None:  # noqa: B008, has no state
        super().__init__()
        self.pretrained_cfg = {"architecture": "small", **GREY, "label_names": ["ant", "bee"]}
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.spoil(self.norm(self.conv(x)).relu()).mean((2, 3)))


def of_two_branches(model: nn.Module) -> nn.Module:
    model.branches = 2
    return model


class Repeats(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, 2, 2)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else 2 * x


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand(())


class Mistaken(nn.Module):
    """Translated faithfully, but as another result: what a bug of a translator would look like."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.01 if torch.compiler.is_exporting() else x


class Two(nn.Module):
    """Two logits, 1 + ``ahead`` and 1, of which the exported graph raises the second by ``lift``."""

    def __init__(self, ahead: float, lift: float) -> None:
        super().__init__()
        self.pretrained_cfg = {"architecture": "two", **GREY, "label_names": ["ant", "bee"]}
        self.num_classes = 2
        self.register_buffer("base", torch.tensor([1 + ahead, 1.0]))
        self.lift = lift

    def forward(self, x: Tensor) -> Tensor:
        logits = 0 * x.mean((1, 2, 3))[:, None] + self.base
        return logits + torch.tensor([0, self.lift]) if torch.compiler.is_exporting() else logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[nn.Module, Path, ExportReport]:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    model = thin(branches=4, merge="max", blocks=2)
    return model, path, to_onnx(model, path, images=pictures(70))


@pytest.fixture(scope="module")
def graph(exported) -> onnx.GraphProto:
    return onnx.load(exported[1]).graph


def logits_of(model: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return deepcopy(model).eval()(images).numpy()


@pytest.mark.parametrize(("branches", "merge"), [(1, "mean"), (2, "concat"), (4, "mean")])
def test_the_file_alone_gives_the_logits_of_the_unfolded_network(tmp_path, branches, merge):
    model = thin(branches, merge)
    images = pictures(33)
    expected = logits_of(model, images)
    assert np.ptp(expected) > 1e-2  # statistics far from the identity leave something to compare
    report = to_onnx(model, tmp_path / "x.onnx", images=images)
    session = runtime.load(tmp_path / "x.onnx", device="cpu")
    for size in (1, 2, 3, 7, 32, 33):
        np.testing.assert_allclose(session.predict(images[:size].numpy()), expected[:size], rtol=0, atol=1e-4)
    assert (report.agreement, report.images) == (1.0, 33)
    assert report.nodes["Conv"] == 1 + 4 * 2 + 3
    groups = [next(a.i for a in n.attribute if a.name == "group") for n in convolutions(tmp_path / "x.onnx")]
    assert groups == [1] + 11 * [branches]


def convolutions(path: Path) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]


def test_convolutions_are_plain_with_the_first_over_one_image_and_all_others_in_k_groups(graph):
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = [
        (shapes[node.input[1]], next(a.i for a in node.attribute if a.name == "group"))
        for node in graph.node
        if node.op_type == "Conv"
    ]
    # K=4, stages 16-16-32-64: out is 4 times the width, in is that of one branch.
    assert found[0] == ([64, 1, 3, 3], 1)
    assert found.count(([64, 16, 3, 3], 4)) == 8
    assert found.count(([64, 16, 1, 1], 4)) == 1
    assert found.count(([128, 16, 3, 3], 4)) == 1
    assert found.count(([128, 16, 1, 1], 4)) == 1
    assert found.count(([128, 32, 3, 3], 4)) == 3
    assert found.count(([256, 32, 3, 3], 4)) == 1
    assert found.count(([256, 32, 1, 1], 4)) == 1
    assert found.count(([256, 64, 3, 3], 4)) == 3
    assert len(found) == 20


def test_nothing_is_copied_normalised_or_left_of_r(exported, graph):
    model, _, report = exported
    assert not {"Tile", "Expand", "BatchNormalization", "Mul"} & set(report.nodes)
    stored = [numpy_helper.to_array(tensor).ravel() for tensor in graph.initializer]
    layers = [m for m in model.modules() if isinstance(m, ccnn_zoo.CalibratedConv2d)]
    assert len(layers) == 20
    for layer in layers:
        secret = layer.calibration.detach().numpy().ravel()
        assert not any(len(values) == len(secret) and np.allclose(values, secret) for values in stored)
        shared = layer.weight.detach().numpy().ravel()
        assert not any(len(values) == len(shared) and np.allclose(values, shared) for values in stored)


def test_the_report_counts_what_is_in_the_file(exported, graph):
    model, path, report = exported
    assert report.path == path
    assert report.file_size == path.stat().st_size
    assert sum(report.nodes.values()) == len(graph.node)
    folded = [m for m in ccnn_zoo.fold(model).modules() if isinstance(m, nn.Conv2d)]
    by_hand = sum(conv.weight.numel() + conv.out_channels for conv in folded) + 64 * 10 + 10
    assert report.parameters == by_hand
    assert [d.batch_size for d in report.differences] == list(BATCH_SIZES) == [1, 3, 32]
    assert 0 < report.mean_difference < report.max_difference < TOLERANCE
    assert (report.images, report.agreement, report.opset) == (70, 1.0, 18)
    assert json.loads(json.dumps(report.to_dict()))["path"] == str(path)


def test_labels_and_preprocessing_travel_in_the_file(exported):
    model, path, _ = exported
    metadata = runtime.load(path, device="cpu").metadata
    assert metadata == metadata_of(model)
    assert metadata.architecture == "ccnn_resnet18_cifar"
    assert (metadata.branches, metadata.labels[3], len(metadata.labels)) == (4, "digit 3", 10)
    assert (metadata.input_size, metadata.mean, metadata.std) == ((1, 8, 8), (0.3,), (0.25,))
    assert (metadata.interpolation, metadata.crop_pct, metadata.crop_mode) == ("bilinear", 1.0, "center")


def test_the_file_is_alone_and_names_no_folder_of_this_machine(exported):
    _, path, _ = exported
    assert list(path.parent.iterdir()) == [path]
    data = path.read_bytes()
    for folder in (Path(timm.__file__).parent, Path(ccnn_zoo.__file__).parent, Path.cwd()):
        assert str(folder).encode() not in data


def test_a_folded_network_gives_the_same_file(exported, tmp_path):
    model, path, report = exported
    folded = to_onnx(ccnn_zoo.fold(model), tmp_path / "x.onnx", images=pictures(70))
    assert folded.nodes == report.nodes
    assert (tmp_path / "x.onnx").read_bytes() == path.read_bytes()


def test_a_plain_timm_network_is_exported_by_the_same_way(tmp_path):
    overlay = {"input_size": (3, 32, 32)}
    model = unsettle(timm.create_model("resnet18", layers=(1, 1, 1, 1), pretrained_cfg_overlay=overlay)).eval()
    report = to_onnx(model, tmp_path / "x.onnx")
    batch_norm = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    # A batch norm leaves a bias of its size, in the place of a weight and a bias.
    assert report.parameters == sum(p.numel() for p in model.parameters()) - batch_norm
    assert report.nodes["Conv"] == 1 + 4 * 2 + 3
    assert (report.images, report.agreement) == (0, None)
    session = runtime.load(tmp_path / "x.onnx", device="cpu")
    assert (session.metadata.branches, session.metadata.labels[1]) == (1, "goldfish, Carassius auratus")
    images = pictures(2, 3, 32)
    expected = logits_of(model, images)
    np.testing.assert_allclose(session.predict(images.numpy()), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_export_leaves_everything_as_it_was(tmp_path, capfd):
    model = thin(branches=2).train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    random.seed(0)
    random_states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_onnx(model, tmp_path / "x.onnx")
    assert capfd.readouterr() == ("", "")
    assert not caught
    assert [m.training for m in model.modules()] == modes
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is state[name][0]
        assert torch.equal(tensor, state[name][1])
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])
    assert random.getstate() == random_states[2]


def test_random_numbers_that_a_network_draws_are_not_the_callers(tmp_path):
    model = Small(Draws())
    before = torch.get_rng_state()
    to_onnx(model, tmp_path / "x.onnx")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (of_two_branches(Small(Repeats())), "has a Tile|has a Expand"),
        (Small(nn.ConvTranspose2d(4, 4, 2)), "has a ConvTranspose"),
        (Small(Decides()), "torch.onnx cannot translate small: "),
        (Small(Mistaken()), r"differs from the network by .* at batch size 1; .* is allowed"),
        (Small(nn.Threshold(100, float("nan"))), "logits that are not finite"),
    ],
    ids=["copies", "transposed", "data-dependent", "wrong result", "not finite"],
)
def test_a_failing_check_leaves_the_old_file_and_no_other(tmp_path, model, message, capfd):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=message):
        to_onnx(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
    assert path.read_bytes() == b"old"
    assert capfd.readouterr() == ("", "")


def test_another_class_on_one_image_is_refused_though_the_logits_are_near(tmp_path):
    with pytest.raises(ExportError, match="puts class 1 first on image 0, the network class 0, ahead by 3e-05"):
        to_onnx(Two(ahead=3e-5, lift=6e-5), tmp_path / "x.onnx", images=pictures(4))
    assert not list(tmp_path.iterdir())


def test_a_tie_is_forgiven_and_reported(tmp_path):
    report = to_onnx(Two(ahead=4e-6, lift=8e-6), tmp_path / "x.onnx", images=pictures(4))
    assert (report.agreement, report.images) == (0.0, 4)
    assert report.max_difference == pytest.approx(8e-6, rel=0.1)


def test_tiny_logits_are_not_compared_by_an_absolute_tolerance(tmp_path):
    model = Small(Mistaken())
    model.fc.weight.data.mul_(1e-4)
    model.fc.bias.data.zero_()
    model.spoil.forward = lambda x: x * 1.5 if torch.compiler.is_exporting() else x
    with pytest.raises(ExportError, match="differs from the network"):
        to_onnx(model, tmp_path / "x.onnx")


def test_images_are_a_tensor_or_any_iterable_of_tensors(tmp_path):
    model = Small()
    images = pictures(5)
    mixed = (item for item in (images[:2].double(), images[2], images[3:]))
    assert [to_onnx(model, tmp_path / "x.onnx", images=kind).images for kind in (images, mixed)] == [5, 5]


def test_a_loader_of_torch_gives_images_with_their_classes(tmp_path):
    model = Small()
    targets = torch.tensor([0, 1, 1, 0, 1])
    loader = DataLoader(TensorDataset(pictures(5), targets), batch_size=2)
    expected = to_onnx(model, tmp_path / "x.onnx", images=[(pictures(5), targets)])
    report = to_onnx(model, tmp_path / "x.onnx", images=loader)
    assert (report.images, report.accuracy) == (5, expected.accuracy)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        (torch.zeros(2, 3, 8, 8), r"images\[0\] has shape \(2, 3, 8, 8\), .*\(1, 8, 8\)"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 8, 9)], r"images\[1\] has shape"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"images\[0\] is a torch\.uint8 tensor"),
        ([(torch.zeros(1, 8, 8), 3)], r"images\[0\] comes with the classes \[3\]; pass 1 integers from 0 to 1"),
        ([(torch.zeros(1, 8, 8), 0), torch.zeros(1, 8, 8)], "some images come with their class, some without"),
        (torch.full((1, 1, 8, 8), torch.inf), r"images\[0\] is not finite"),
    ],
    ids=["empty", "channels", "size", "bytes", "class", "mixed", "infinite"],
)
def test_unusable_images_are_refused(tmp_path, images, message):
    with pytest.raises(ConfigurationError, match=message):
        to_onnx(Small(), tmp_path / "x.onnx", images=images)


@pytest.mark.parametrize("opset", [17, 18.0, True, None])
def test_opsets_that_torch_does_not_write_are_refused(tmp_path, opset):
    with pytest.raises(ConfigurationError, match="opset must be an integer of at least 18"):
        to_onnx(Small(), tmp_path / "x.onnx", opset=opset)


def test_a_newer_opset_is_written_as_asked(tmp_path):
    assert to_onnx(Small(), tmp_path / "x.onnx", opset=21).opset == 21
    assert onnx.load(tmp_path / "x.onnx").opset_import[0].version == 21


def test_an_input_size_that_the_network_cannot_read_is_named(tmp_path):
    model = Small()
    model.pretrained_cfg["input_size"] = (1, 2, 2)
    with pytest.raises(ExportError, match=r"cannot run an image of \(1, 2, 2\).*input_size"):
        to_onnx(model, tmp_path / "x.onnx")


def test_a_transformer_is_exported_and_at_another_size_refused(tmp_path):
    overlay = {"input_size": (3, 32, 32), "label_names": ["a", "b"]}
    shape = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 1, "num_classes": 2}
    model = timm.create_model("vit_tiny_patch16_224", **shape, pretrained_cfg_overlay=overlay)
    assert to_onnx(model, tmp_path / "x.onnx").nodes["Expand"] == 1  # of its class token
    with pytest.raises(ExportError, match=r"cannot run an image of \(3, 48, 48\).*Leave size out"):
        to_onnx(model, tmp_path / "x.onnx", size=(48, 48))


def test_a_network_larger_than_one_file_can_be_is_refused_before_it_is_translated(tmp_path, monkeypatch):
    assert _convert.LARGEST_FILE < 2**31
    monkeypatch.setattr(_convert, "LARGEST_FILE", 200)
    with pytest.raises(ExportError, match=r"holds .* GB of weights, one ONNX file at most .*\. Use fewer branches"):
        to_onnx(Small(Decides()), tmp_path / "x.onnx")  # which could not be translated either
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_repository_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="cannot write"):
        to_onnx(Small(), tmp_path / "file" / "x.onnx")
    with pytest.raises(RepositoryError, match="is a folder"):
        to_onnx(Small(), tmp_path)


def test_a_folder_that_somebody_makes_in_the_meantime_is_kept(tmp_path):
    def images() -> Iterator[Tensor]:
        (tmp_path / "late").mkdir()
        yield pictures(4)

    with pytest.raises(RepositoryError, match=r"cannot replace .*kept"):
        to_onnx(Small(), tmp_path / "late", images=images())
    assert [path.name for path in tmp_path.iterdir()] == ["late"]
