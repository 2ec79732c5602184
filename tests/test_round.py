"""Every family that `calibrate` takes goes the whole round: save, load, fold, publish, load by timm, run as ONNX."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import timm
import torch
from separate_networks import randomize
from torch import Tensor, nn

from ccnn_zoo import CalibratedConv2d, calibrate, fold, hub, runtime
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.export import to_onnx

LABELS = list("abcde")
RECORD = TrainingRecord("noise", seed=0, epochs=0)
SIZE = (3, 32, 32)
# One of each kind of tests/test_convert_families.py, as few layers as its constructor allows.
FAMILIES = {
    "residual": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}),
}
SLOW_FAMILIES = {
    "pre-activation, convolution to the classes": ("resnetv2_18", {"layers": (1, 1, 1, 1)}),
    "several readers of the image": ("repvgg_a0", {}),
    "depthwise, convolution after pooling": ("mobilenetv3_small_050", {}),
    "residual, average pooling in the shortcut": ("resnet18d", {"layers": (1, 1, 1, 1)}),
    "grouped": ("resnext26ts", {}),
    "squeeze and excitation": ("seresnet18", {"layers": (1, 1, 1, 1)}),
    "RegNet": ("regnety_002", {}),
    "depthwise": ("mobilenetv2_050", {}),
    "TensorFlow's padding": ("tf_mobilenetv3_small_minimal_100", {}),
    "concatenation": ("densenet121", {"block_config": (1, 1, 1, 1)}),
    "classic": ("vgg11_bn", {}),
    "several resolutions": ("hrnet_w18_small", {}),
    "aligned Xception": ("xception41", {}),
    "EfficientNet": ("efficientnet_b0", {}),
}
ALL = [
    *(pytest.param(*item, id=name) for name, item in FAMILIES.items()),
    *(pytest.param(*item, id=name, marks=pytest.mark.slow) for name, item in SLOW_FAMILIES.items()),
]


def images() -> Tensor:
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))


def trained(base: str, arguments: dict[str, object]) -> nn.Module:
    """What `calibrate` makes of a timm network, every weight and statistic its own."""
    overlay = {"input_size": SIZE, "label_names": LABELS, "pool_size": None}
    torch.manual_seed(0)
    plain = timm.create_model(base, num_classes=5, pretrained_cfg_overlay=overlay, **arguments)
    model = randomize(calibrate(plain, branches=2, diversity=1.0))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, *SIZE))
    return model.eval()


@pytest.mark.parametrize(("base", "arguments"), ALL)
@torch.no_grad()
def test_what_calibrate_returns_goes_the_whole_round(base: str, arguments: dict[str, object], tmp_path: Path) -> None:
    model, x = trained(base, arguments), images()
    logits, by_branch = model(x), model.forward_branches(x)
    assert (by_branch[0] - by_branch[1]).abs().max() > 1e-3 * by_branch.abs().max(), "the branches must differ"

    save_checkpoint(tmp_path / "run.safetensors", model, RECORD)
    loaded, _ = load_checkpoint(tmp_path / "run.safetensors")
    assert type(loaded) is type(model)
    assert torch.equal(loaded(x), logits)
    assert torch.equal(loaded.forward_branches(x), by_branch)

    save_checkpoint(tmp_path / "folded.safetensors", fold(model), RECORD)
    folded, _ = load_checkpoint(tmp_path / "folded.safetensors")
    assert not any(isinstance(module, CalibratedConv2d) for module in folded.modules())
    assert torch.equal(folded(x), logits)

    publication = hub.publish(tmp_path / "run.safetensors", f"local:{tmp_path}/repository")
    assert publication.manifest.details["architecture"] == f"ccnn.{base}"
    by_timm = timm.create_model(f"local-dir:{hub.download(publication.repo_id)}", pretrained=True).eval()
    assert torch.equal(by_timm(x), logits)
    deployed = runtime.load(publication.repo_id, device="cpu")
    assert deployed.metadata.labels == tuple(LABELS)
    torch.testing.assert_close(torch.from_numpy(deployed.predict(x.numpy())), logits, rtol=1e-3, atol=1e-3)

    to_onnx(model, tmp_path / "branches.onnx", branch_outputs=True)  # which compares both outputs with torch
    session = ort.InferenceSession(tmp_path / "branches.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "branch_logits"]
