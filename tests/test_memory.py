"""A calibrated network holds w and R, never the effective kernels."""

from __future__ import annotations

import gc

import timm
import torch

import ccnn_zoo


def alive() -> set[tuple[int, ...]]:
    """Shapes of all tensors that are still referenced."""
    gc.collect()
    return {tuple(thing.shape) for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)}


def test_parameters_are_the_plain_networks_and_one_r_per_layer():
    plain = timm.create_model("resnet18")
    calibrated = timm.create_model("ccnn_resnet18", branches=5)
    convs = [m for m in plain.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    expected = sum(p.numel() for p in plain.parameters())
    expected += sum(5 * m.kernel_size[0] * m.kernel_size[1] for m in convs)
    expected += sum(4 * 2 * m.num_features for m in norms)  # every further branch normalises by itself
    assert sum(p.numel() for p in calibrated.parameters()) == expected


def test_effective_kernels_are_not_kept_between_steps():
    model = timm.create_model("ccnn_resnet18_cifar", branches=7)
    optimizer = ccnn_zoo.CSGD(model, lr=0.1)
    loss = model(torch.randn(2, 3, 32, 32)).square().sum()
    effective = (7 * 64, 64, 3, 3)
    held = loss.grad_fn  # the graph still needs the kernels
    assert model.layer4[1].conv2.effective_weight().shape == effective
    loss.backward()
    optimizer.step()
    del loss, held
    assert tuple(model.layer4[1].conv2.weight.shape) in alive()
    assert effective not in alive()
    kept = model.layer4[1].conv2.effective_weight()
    assert tuple(kept.shape) in alive()
