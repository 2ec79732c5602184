"""timm's contract where timm's own suite (scripts/timm_suite.py) does not look."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import ccnn_zoo
from ccnn_zoo.layers import BranchLinear

# One of each class, small: name, arguments, size of the image.
SMALL = {
    "bottleneck": ("ccnn_resnet50", {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}, 64),
    "padded resnet": ("ccnn_resnet20_cifar", {"layers": (2, 1, 1)}, 16),
    "wide resnet": ("ccnn_wrn28_4", {"depth": 10, "width": 1}, 16),
    "alexnet": ("ccnn_alexnet", {"drop_rate": 0.0}, 64),
    "nin": ("ccnn_nin", {"drop_rate": 0.0}, 16),
    "vgg": ("ccnn_vgg16", {"model_cfg": [8, "M", 16, "M", 16, "M", 8, "M"]}, 32),
}
kinds = pytest.mark.parametrize("kind", SMALL)


def build(kind: str, **kwargs: object) -> tuple[nn.Module, torch.Tensor]:
    """Return a network in eval mode and two images."""
    name, arguments, size = SMALL[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, **{"num_classes": 5, **arguments, **kwargs}).eval()
    return model, torch.randn(2, 3, size, size)


@kinds
@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_networks_export_with_any_batch_size(kind, folded):
    model, images = build(kind, folded=folded)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    more = torch.cat([images, images[:1]])
    torch.testing.assert_close(program.module()(more), model(more))


@kinds
def test_networks_compile_to_one_graph_with_gradients(kind):
    model, images = build(kind)
    model(images).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(images).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    torch.compiler.reset()


@kinds
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@torch.no_grad()
def test_scripted_networks_give_the_same(kind):
    for arguments in ({}, {"merge": "concat", "mixing": "dense"}, {"branches": 1, "folded": True}):
        model, images = build(kind, **arguments)
        torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@pytest.mark.parametrize(
    "kind", sorted(SMALL.keys() - {"vgg"})
)  # its hidden layers are a leaf to timm's own tracer only
@torch.no_grad()
def test_traced_networks_give_the_same(kind):
    model, images = build(kind, merge="max")
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))


@torch.no_grad()
def test_timms_graphs_hold_a_calibrated_convolution_as_one_node():
    """As they hold an nn.Conv2d; torchvision's tracer is quadratic in the nodes."""
    model, _ = build("padded resnet", features_only=True, feature_cls="fx", out_indices=(1, 2))
    nodes = {node.target for node in model.graph_module.graph.nodes if node.op == "call_module"}
    convs = [n for n, m in model.graph_module.named_modules() if isinstance(m, ccnn_zoo.CalibratedConv2d)]
    assert convs
    assert set(convs) <= nodes
    assert not any(node.op == "get_attr" for node in model.graph_module.graph.nodes)


@kinds
@torch.no_grad()
def test_features_only_gives_the_intermediates_of_all_branches(kind):
    model, images = build(kind, branches=3)
    features, _ = build(kind, branches=3, features_only=True, out_indices=(1, -1))
    weights = {name.replace(".", "_", 1): value for name, value in model.state_dict().items()}
    weights |= model.state_dict()
    features.load_state_dict({name: weights[name] for name in features.state_dict()})
    intermediates = model.forward_intermediates(images, indices=[1, len(model.feature_info) - 1])[1]
    got = features(images)
    assert [f.shape[1] for f in got] == features.feature_info.channels()
    for ours, expected in zip(got, intermediates, strict=True):
        torch.testing.assert_close(ours, expected)


@kinds
def test_checkpointing_changes_no_gradient(kind):
    model, images = build(kind)
    model.train()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(images).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@kinds
@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@torch.no_grad()
def test_a_new_classifier_is_like_the_old_one(kind, merge):
    model, images = build(kind, branches=3, merge=merge)
    like, _ = build(kind, branches=3, merge=merge, num_classes=7)
    old = [(name, type(m)) for name, m in model.named_modules()]
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(7)
    assert [(name, type(m)) for name, m in model.named_modules()] == old
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in like.named_parameters()}
    assert torch.equal(model.forward_head(model.forward_features(images), pre_logits=True), features)
    assert model(images).shape == (2, 7)
    assert model.forward_branches(images).shape == (3, 2, 7)


@kinds
@torch.no_grad()
def test_a_headless_network_can_get_a_head(kind):
    model, images = build(kind, branches=3, num_classes=0)
    assert model(images).shape == (2, model.head_hidden_size)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    assert sum(isinstance(m, BranchLinear) for m in model.modules()) == 1


@kinds
def test_pruned_networks_keep_what_the_intermediate_needs_and_no_more(kind):
    model, images = build(kind, branches=3)
    expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    expected.square().mean().backward()
    needed = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.prune_intermediate_layers([1], prune_norm=True)
    assert {name for name, _ in model.named_parameters()} == needed
    assert torch.equal(model.forward_intermediates(images, indices=[1], intermediates_only=True)[0], expected)


@torch.no_grad()
def test_alexnet_without_pooling_classifies_behind_a_new_one():
    model, images = build("alexnet", branches=3, num_classes=0, global_pool="")
    assert torch.equal(model(images), model.forward_features(images))
    model.reset_classifier(5, "avg")
    assert model.forward_branches(images).shape == (3, 2, 5)
    torch.testing.assert_close(model.forward_branches(images).mean(0), model(images))


@kinds
@torch.no_grad()
def test_other_numbers_of_channels_are_read(kind):
    model, images = build(kind, in_chans=1)
    assert model(images[:, :1]).shape == (2, 5)


@kinds
def test_weights_of_the_plain_network_load_by_their_own_names(kind):
    plain, _ = build(kind, branches=1, folded=True)
    model, _ = build(kind, branches=3)
    shared = {n: p for n, p in plain.named_parameters() if p.ndim == 4}
    missing, unexpected = model.load_state_dict(shared, strict=False)
    assert unexpected == []
    assert not {n for n in missing if n in shared}


def test_networks_are_registered_when_timm_is_imported_last():
    code = "import ccnn_zoo, timm; print(*timm.list_models('ccnn_*'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == timm.list_models("ccnn_*")


def test_folded_networks_hold_no_calibrated_layer():
    model, _ = build("bottleneck", folded=True)
    assert not any(isinstance(m, ccnn_zoo.CalibratedConv2d) for m in model.modules())
    assert model.no_weight_decay() == set()
