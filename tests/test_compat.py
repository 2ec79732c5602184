"""Private names of other packages: each does what it is taken for, and none stands outside of one file."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import huggingface_hub
import onnxruntime as ort
import pytest
import timm
import torch
from accelerate import Accelerator
from huggingface_hub.utils import get_session

from ccnn_zoo._base import compat

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = {("os", "_exit")}  # in spite of its name


def test_indices_of_features_count_from_the_end_too():
    assert compat.feature_take_indices(5, [1, -1]) == ([1, 4], 4)
    assert compat.feature_take_indices(5, 2) == ([3, 4], 4)


def test_config_json_is_timms(tmp_path):
    model = timm.create_model("resnet18", num_classes=7)
    compat.save_config_for_hf(model, tmp_path / "config.json", model_args={"zero_init_last": False})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert (config["num_classes"], config["model_args"]) == (7, config["model_args"] | {"zero_init_last": False})


def test_an_optimizer_of_the_registry_is_made_by_its_name():
    class Mine(torch.optim.SGD):
        pass

    compat.optimizer_registry.register(timm.optim.OptimInfo(name="ofthistest", opt_class=Mine, has_eps=False))
    made = timm.optim.create_optimizer_v2(torch.nn.Linear(2, 2), opt="ofthistest", lr=0.1)
    assert type(made) is Mine


def test_errors_of_onnxruntime_are_the_ones_it_raises(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(compat.ort_errors.InvalidProtobuf):
        ort.InferenceSession(tmp_path / "broken.onnx", providers=["CPUExecutionProvider"])


def test_a_dispatch_mode_sees_every_operator():
    seen = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **kwargs or {})

    with Watch():
        torch.ones(2) + torch.ones(2)
    assert "aten.add.Tensor" in seen


def test_leaves_of_nested_outputs_are_found():
    outputs = {"logits": torch.zeros(1), "more": [torch.ones(1), (torch.ones(2), None)]}
    assert sum(isinstance(leaf, torch.Tensor) for leaf in compat.tree_leaves(outputs)) == 3


def test_batch_normalisation_is_known_by_its_base():
    kinds = torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm
    assert all(issubclass(kind, compat.BatchNorm) for kind in kinds)
    assert issubclass(torch.nn.InstanceNorm2d, compat.BatchOrInstanceNorm)
    assert not issubclass(torch.nn.InstanceNorm2d, compat.BatchNorm)


def test_many_tensors_are_stepped_at_once():
    one, other = [torch.ones(2), torch.ones(3)], [torch.full((2,), 2.0), torch.full((3,), 5.0)]
    compat.foreach_mul_(one, 3.0)
    compat.foreach_add_(one, other, alpha=2.0)
    assert [tensor.tolist() for tensor in one] == [[7.0] * 2, [13.0] * 3]
    compat.foreach_copy_(one, other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_dynamo_is_kept_out_of_runs_as_it_is():
    compiled = torch.compile(
        lambda x: compat.disable_dynamo(lambda y: y + torch.compiler.is_compiling())(x), backend="eager"
    )
    assert compiled(torch.zeros(1)).item() == 0


def test_weights_of_vgg_are_torchvisions_under_timms_names():
    theirs = {"classifier.0.weight": torch.zeros(4096, 25088), "features.0.bias": torch.zeros(1)}
    ours = compat.vgg_weights(theirs)
    assert ours["pre_logits.fc1.weight"].shape == (4096, 512, 7, 7)


def test_a_process_takes_another_precision_after_forgetting():
    for precision in ("bf16", "no"):
        compat.forget_accelerators()
        assert Accelerator(cpu=True, mixed_precision=precision).mixed_precision == precision


def test_a_factory_that_a_user_has_set_is_noticed(monkeypatch):
    before = compat.hub_client_factory()
    assert before is not None
    assert before().timeout is not None
    try:
        huggingface_hub.set_client_factory(lambda: before())
        assert compat.hub_client_factory() is None
    finally:
        huggingface_hub.set_client_factory(before)
    assert get_session() is not None


def test_every_name_is_there():
    assert all(getattr(compat, name) is not None for name in compat.NAMES)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        compat.nonsense  # noqa: B018


def private_names(file: Path) -> list[str]:
    """Return what a module imports from private parts of other packages, or reaches into by ``package._name``."""
    tree, found, foreign = ast.parse(file.read_text(encoding="utf-8")), [], set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and not node.module.startswith(("ccnn_zoo", "__future__"))
        ):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [f"{node.module}: {part}" for part in parts if part.startswith("_")]
            foreign |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            found += [alias.name for alias in node.names if any(p.startswith("_") for p in alias.name.split(".")[1:])]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in foreign and (root.id, node.attr) not in DOCUMENTED:
                found.append(f"{root.id} … {node.attr}")
    return found


def test_private_names_of_other_packages_stand_in_one_file():
    files = [file for folder in ("ccnn_zoo", "export", "hub") for file in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)): private_names(file) for file in files}
    assert found.pop("ccnn_zoo/_base/compat.py")
    assert not {file: names for file, names in found.items() if names}


def test_the_scan_sees_each_way_to_reach_in(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("from timm._x import y\nimport torch._inductor\nimport numpy as np\nnp.core._methods\n")
    assert len(private_names(file)) == 3
