"""Branch outputs: a second output of the file says what each branch alone says, and is held to the same checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from separate_networks import randomize
from torch import Tensor, nn

from ccnn_zoo import runtime
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint
from ccnn_zoo.cli import app
from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.export import ExportReport, to_onnx

LABELS = ["ant", "bee", "cat", "dog"]
BRANCHES = 3
CONVOLUTIONS = 1 + 3 * 2 + 2  # stem, a block of two in each of three stages, two shortcuts


def small(merge: str = "mean", branches: int = BRANCHES) -> nn.Module:
    """A Wide ResNet of 10 layers: three stages, of which the first keeps its width."""
    overlay = {"input_size": (3, 8, 8), "label_names": LABELS}
    arguments = {"depth": 10, "width": 1, "num_classes": 4, "pretrained_cfg_overlay": overlay}
    torch.manual_seed(0)
    model = timm.create_model("ccnn_wrn28_4", branches=branches, merge=merge, **arguments)
    return randomize(model).eval()


def pictures(number: int) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(number))


@pytest.fixture(scope="module", params=["mean", "max", "concat"])
def exported(request, tmp_path_factory) -> tuple[nn.Module, Path, ExportReport]:
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    model = small(request.param)
    return model, path, to_onnx(model, path, images=pictures(5), branch_outputs=True)


def outputs_of(path: Path, images: Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "branch_logits"]
    return session.run(None, {"image": images.numpy()})


def test_the_second_output_is_what_forward_branches_gives_for_any_number_of_images(exported):
    model, path, _ = exported
    images = pictures(7)
    with torch.no_grad():
        logits, branch_logits = model(images).numpy(), model.forward_branches(images).numpy()
    assert branch_logits.shape == (BRANCHES, 7, 4)
    assert np.abs(branch_logits[0] - branch_logits[1]).max() > 0.01, "alike branches would say nothing"
    for size in (1, 2, 7):
        ours, ours_by_branch = outputs_of(path, images[:size])
        np.testing.assert_allclose(ours, logits[:size], rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours_by_branch, branch_logits[:, :size], rtol=0, atol=1e-4)
    if model.merge != "max":
        np.testing.assert_allclose(ours_by_branch.mean(0), ours, rtol=0, atol=1e-4)


def test_the_shapes_in_the_file_name_the_batch_on_both_outputs(exported):
    outputs = onnx.load(exported[1]).graph.output
    sides = [[side.dim_param or side.dim_value for side in o.type.tensor_type.shape.dim] for o in outputs]
    assert sides == [["batch", 4], [BRANCHES, "batch", 4]]


def test_nothing_is_computed_twice_for_two_outputs(exported):
    _, path, report = exported
    assert report.nodes["Conv"] == CONVOLUTIONS
    assert report.nodes["Relu"] == 7  # two a block, and the last
    graph = onnx.load(path).graph
    computed = [(node.op_type, *node.input, *map(str, node.attribute)) for node in graph.node]
    assert len(computed) == len(set(computed))
    assert not any(tensor.name.startswith("network.") for tensor in graph.initializer)


def test_the_report_says_how_far_the_branches_are_from_torch(exported):
    _, _, report = exported
    assert 0 < report.branch_difference < 1e-4
    assert report.to_dict()["branch_difference"] == report.branch_difference
    assert (report.images, report.agreement) == (5, 1.0)


def test_the_runtime_reads_the_logits_of_such_a_file(exported):
    model, path, _ = exported
    images = pictures(3)
    session = runtime.load(path, device="cpu")
    assert session.metadata.branches == BRANCHES
    with torch.no_grad():
        np.testing.assert_allclose(session.predict(images.numpy()), model(images).numpy(), rtol=0, atol=1e-4)


def test_without_being_asked_there_is_one_output(tmp_path):
    report = to_onnx(small(branches=2), tmp_path / "x.onnx")
    assert report.branch_difference is None
    assert [output.name for output in onnx.load(tmp_path / "x.onnx").graph.output] == ["logits"]


def test_a_plain_network_says_the_same_as_its_one_branch(tmp_path):
    model = small(branches=1)
    to_onnx(model, tmp_path / "x.onnx", branch_outputs=True)
    logits, branch_logits = outputs_of(tmp_path / "x.onnx", pictures(2))
    np.testing.assert_allclose(branch_logits, logits[None], rtol=0, atol=1e-5)


def test_a_network_that_cannot_tell_its_branches_apart_is_refused_with_a_remedy(tmp_path):
    model = timm.create_model("resnet10t", pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    with pytest.raises(ConfigurationError, match=r"ResNet has none.*timm\.create_model\(\"ccnn_.*leave branch_outputs"):
        to_onnx(model, tmp_path / "x.onnx", branch_outputs=True)
    assert not list(tmp_path.iterdir())


class Spoilt(nn.Module):
    """The least that has branches; ``spoil`` is what goes wrong in their logits, and in theirs alone."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pretrained_cfg = {"architecture": "spoilt", "input_size": (3, 8, 8), "label_names": LABELS}
        self.branches = BRANCHES
        self.fc = nn.Linear(3, len(LABELS))
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward_branches(self, x: Tensor) -> Tensor:
        return self.spoil(torch.stack(BRANCHES * [self(x)]))


def mistaken(logits: Tensor) -> Tensor:
    """Translated faithfully, but as another result: what a bug of a translator would look like."""
    return logits * 1.01 if torch.compiler.is_exporting() else logits


def another_class(logits: Tensor) -> Tensor:
    """Branch 1 puts class 0 first by 3e-5, in the exported graph class 1."""
    ahead = torch.zeros(BRANCHES, 1, len(LABELS))
    ahead[1, 0, 0] = 3e-5
    if torch.compiler.is_exporting():
        ahead[1, 0, 1] = 6e-5
    return 0 * logits + torch.tensor([1.0, 1.0, 0, 0]) + ahead


def infinite(logits: Tensor) -> Tensor:
    return logits / 0


def too_few(logits: Tensor) -> Tensor:
    return logits[1:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (mistaken, "in branch_logits the exported graph differs from the network by .* at batch size 1"),
        (another_class, r"in branch_logits\[1\] the exported graph puts class 1 first on image 0, the network class 0"),
        (infinite, "gives branch_logits that are not finite"),
        (
            too_few,
            r"maps .*\('branch_logits', 'FLOAT', 2, 'batch', 4\)\], not .*\('branch_logits', 'FLOAT', 3, 'batch', 4\)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_branches_that_differ_from_torch_leave_no_file(tmp_path, spoil, message):
    with pytest.raises(ExportError, match=message):
        to_onnx(Spoilt(spoil), tmp_path / "x.onnx", images=pictures(2), branch_outputs=True)
    assert not list(tmp_path.iterdir())


def test_the_command_line_adds_the_output_and_says_how_near_it_is(tmp_path, capsys):
    save_checkpoint(tmp_path / "x.safetensors", small(), TrainingRecord("noise", seed=0, epochs=0))
    command = ["export", str(tmp_path / "x.safetensors"), "-o", str(tmp_path / "x.onnx"), "--branch-outputs"]
    app(command, standalone_mode=False)
    assert "difference to torch, branch by branch " in capsys.readouterr().out
    assert outputs_of(tmp_path / "x.onnx", pictures(2))[1].shape == (BRANCHES, 2, len(LABELS))
