"""What importing the package does: nothing heavy by itself, and timm's registries are joined in either order."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks

import ccnn_zoo

HEAVY = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "matplotlib", "sklearn")
JOINED = """
assert "ccnn_resnet18" in timm.list_models("ccnn_*"), timm.list_models("ccnn_*")
from timm.optim import list_optimizers
assert "csgd" in list_optimizers()
assert timm.create_model("ccnn_resnet18_cifar", branches=2).branches == 2
"""


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, ccnn_zoo; dir(ccnn_zoo); print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_networks_and_optimizer_join_timm() -> None:
    run_python("import ccnn_zoo; import timm" + JOINED)


@pytest.fixture(scope="module")
def torch_there() -> Iterator[Forks]:
    """Processes that have imported torch and torchvision, and nothing of ours or timm's."""
    with Forks("import torch, torchvision", os.environ) as forks:
        yield forks


@pytest.mark.parametrize(
    "imports",
    [
        "import ccnn_zoo; import timm",
        "import timm; import ccnn_zoo",
        "import ccnn_zoo.convert; import timm",
        "from ccnn_zoo import calibrate, CSGD; import timm",
        "import ccnn_zoo.models; import timm",
    ],
)
def test_networks_and_optimizer_join_timm_in_any_order_of_imports(imports: str, torch_there: Forks) -> None:
    before = "import sys; assert not {'timm', 'ccnn_zoo'} & sys.modules.keys()\n"
    done = torch_there.run(before + imports + JOINED)
    assert done.returncode == 0, done.stderr


def test_layers_conversion_and_optimizer_do_without_timm(torch_there: Forks) -> None:
    code = (
        "import sys; from ccnn_zoo import CSGD, CalibratedConv2d, calibrate, fold, split; print('timm' in sys.modules)"
    )
    assert torch_there.run(code).stdout.strip() == "False"


def test_all_public_names_resolve() -> None:
    names = run_python(
        "import ccnn_zoo\n"
        "for name in sorted(ccnn_zoo.__all__):\n"
        "    assert name in dir(ccnn_zoo)\n"
        "    print(getattr(ccnn_zoo, name).__name__.removeprefix('ccnn_zoo.'))"
    )
    modules = {"analysis", "checkpoint", "detection", "errors", "export", "hub", "metadata", "models", "runtime"}
    modules |= {"serve", "train", "uncertainty"}
    others = {"BranchLinear", "CalibratedConv2d", "calibrate", "deep_ensemble", "fold", "CSGD", "split", "Split"}
    assert names.split() == sorted(others | modules)


def test_type_checkers_are_told_the_same_names() -> None:
    stub = ast.parse(Path(ccnn_zoo.__file__).with_name("__init__.pyi").read_text())
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(ccnn_zoo.__all__)
    listed = next(node.value for node in stub.body if isinstance(node, ast.Assign))
    assert set(ast.literal_eval(listed)) == imported


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import ccnn_zoo\ntry:\n    ccnn_zoo.nothing\nexcept AttributeError as error:\n    print(error)"
    assert "nothing" in run_python(code)
