"""`pip install ccnn-zoo` brings what the base needs, an extra what its room needs, and errors name the extra."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from light_site import PROJECT, REPOSITORY, light_python, light_site, required
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ccnn_zoo._base.missing import ELSEWHERE, PACKAGES, ROOMS, missing_package
from ccnn_zoo.errors import CCNNError, ConfigurationError, MissingPackageError

EXTRAS = PROJECT["optional-dependencies"]
WORK = """
import sys
import ccnn_zoo
assert not {"torch", "timm"} & sys.modules.keys()
import timm, torch
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint

def step(model):
    optimizer = timm.optim.create_optimizer_v2(model, opt="csgd", lr=0.1)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    optimizer.step()
    return model.eval()

images = torch.rand(2, 3, 32, 32)
model = step(timm.create_model("ccnn_resnet20_cifar", branches=2, num_classes=5))
torch.testing.assert_close(ccnn_zoo.fold(model)(images), model(images), rtol=0, atol=0)
save_checkpoint(sys.argv[1], model, TrainingRecord("noise", seed=0, epochs=1))
torch.testing.assert_close(load_checkpoint(sys.argv[1])[0].eval()(images), model(images), rtol=0, atol=0)
plain = timm.create_model("resnet18", num_classes=5)
step(ccnn_zoo.calibrate(plain, branches=2))
print("works")
"""
# What a user writes, and the extra that it needs.
REFUSED = {
    "from ccnn_zoo import export": "export",
    "import ccnn_zoo.runtime": "runtime",
    "from ccnn_zoo.train import train": "train",
    "import ccnn_zoo; ccnn_zoo.detection": "detection",
    "import ccnn_zoo.analysis": "train",
    "import ccnn_zoo.hub._stage": "hub",
    "import ccnn_zoo.demo": "all",
    "from ccnn_zoo.serve import serve": "serve",
    "from ccnn_zoo.web import write_site": "web",
    "from ccnn_zoo.uncertainty import auroc; auroc([0.1, 0.2], [0.3])": "uncertainty",
    "import ccnn_zoo.cli": "cli",
}
ASK = """
import sys
from ccnn_zoo.errors import MissingPackageError
for line in sys.argv[1:]:
    try:
        exec(line, {"__name__": "a_users_program"})
    except MissingPackageError as error:
        print(error)
    else:
        print("imported")
exec('from importlib.util import find_spec; assert find_spec("onnx") is None', {"__name__": "ccnn_zoo.export.asks"})
try:
    import onnx
except ModuleNotFoundError as error:
    assert type(error) is ModuleNotFoundError, "another program's imports are its own"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """An environment after ``pip install ccnn-zoo``."""
    return light_site(tmp_path_factory.mktemp("base"), "ccnn-zoo")


def test_the_base_builds_calibrates_trains_folds_saves_and_loads(base, tmp_path):
    run = light_python(base, WORK, tmp_path / "model.safetensors")
    assert run.stdout == "works\n", run.stderr


def test_what_the_base_lacks_is_named_with_its_extra(base):
    run = light_python(base, ASK, *REFUSED)
    assert run.returncode == 0, run.stderr
    for told, extra in zip(run.stdout.splitlines(), REFUSED.values(), strict=True):
        package = re.fullmatch(rf'the package (\S+) is not installed: pip install "ccnn-zoo\[{extra}\]"', told)
        assert package, (told, extra)
        brought = {name.removesuffix("-gpu") for name in names(f"ccnn-zoo[{extra}]") - names("ccnn-zoo")}
        assert canonicalize_name(package[1]) in brought


def test_the_command_without_its_extra_says_so_in_one_line(base):
    module, _, function = PROJECT["scripts"]["ccnn"].partition(":")
    run = light_python(base, f"from {module} import {function}; {function}()", "list")
    assert run.returncode == 1
    assert run.stderr == 'error: the package typer is not installed: pip install "ccnn-zoo[cli]"\n'


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - {"cli"}))  # whose commands need what they command
def test_an_extra_brings_all_that_its_room_imports(room, tmp_path):
    site = light_site(tmp_path, f"ccnn-zoo[{room}]")
    program = (
        f"import pkgutil, importlib, ccnn_zoo.{room} as room\n"
        "for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "print('works')"
    )
    run = light_python(site, program)
    assert run.stdout == "works\n", run.stderr


@pytest.mark.parametrize(
    "room", sorted({*ROOMS, "analysis", "checkpoint.py", "convert.py", "layers", "models", "optim"})
)
def test_every_import_of_a_room_is_of_its_extra(room):
    """Those in functions too. A command imports what it commands."""
    extra = {"analysis": "train", "cli": "all"}.get(room, room)
    wanted = [f"ccnn-zoo[{extra}]" if extra in EXTRAS else "ccnn-zoo"]
    installed = names(*wanted, *(f"ccnn-zoo[{each}]" for each in ELSEWHERE.values()))
    modules = {module for path in _files(room) for module in _imported(path)}
    assert modules
    assert [module for module in modules if not installed & _distributions()[module]] == []


def test_every_package_that_is_imported_can_be_named():
    used = {module for room in ("", "export", "hub") for path in _files(room) for module in _imported(path)}
    assert used <= PACKAGES.keys()
    for module, package in PACKAGES.items():
        assert canonicalize_name(package) in {name.removesuffix("-gpu") for name in _distributions()[module]}


def test_rooms_know_the_extras_that_theirs_brings():
    def brought(extra: str) -> set[str]:
        own = [Requirement(line) for line in EXTRAS[extra] if line.startswith("ccnn-zoo[")]
        direct = set().union(*(each.extras for each in own))
        return direct.union(*map(brought, direct))

    assert {room: set(others) for room, others in ROOMS.items()} == {room: brought(room) for room in ROOMS}
    assert brought("all") == EXTRAS.keys() - {"all", "dev", "experiments"}
    assert "all" in Requirement(EXTRAS["dev"][0]).extras  # `make install`
    assert set(ELSEWHERE.values()) <= EXTRAS.keys()


def test_a_missing_package_is_an_error_of_ours_and_an_import_error():
    error = missing_package("sklearn", ["train", "cli"])
    assert isinstance(error, MissingPackageError)
    assert isinstance(error, CCNNError)
    assert isinstance(error, ConfigurationError)
    assert isinstance(error, ModuleNotFoundError)
    assert (str(error), error.name) == (
        'the package scikit-learn is not installed: pip install "ccnn-zoo[train]"',
        "sklearn",
    )


@cache
def names(*wanted: str) -> set[str]:
    return required(*wanted)


@cache
def _distributions() -> dict[str, set[str]]:
    """Which distributions hold a module."""
    return {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


def _files(room: str) -> list[Path]:
    top = REPOSITORY if room in ("export", "hub") else REPOSITORY / "ccnn_zoo"
    path = top / room
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, but for the standard library's, ours, and those for type checkers."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return found - sys.stdlib_module_names - {"ccnn_zoo"}
