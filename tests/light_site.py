"""A folder that is to Python an environment with a few packages and what they require, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
RUNTIME = tomllib.loads((REPOSITORY / "ccnn-runtime" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def required(*names: str) -> set[str]:
    """Return the distributions of these names and all that they require, extras as in ``ccnn-zoo[export]``.

    What ccnn-zoo requires is read from pyproject.toml, which may be newer than what is installed.
    """
    found: set[tuple[str, str]] = set()
    here = [name for name in names if (marker := Requirement(name).marker) is None or marker.evaluate()]
    waiting = [(name, extra) for name, extras in map(_parsed, here) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        try:
            requirements = list(map(Requirement, _requirements(name)))
        except PackageNotFoundError:  # for another platform
            continue
        found.add((name, extra))
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    return {name for name, _ in found}


def _parsed(name: str) -> tuple[str, set[str]]:
    requirement = Requirement(name)
    return canonicalize_name(requirement.name), requirement.extras


def _requirements(name: str) -> list[str]:
    if name != "ccnn-zoo":
        return distribution(name).requires or []
    found = list(PROJECT["dependencies"])
    for extra, lines in PROJECT["optional-dependencies"].items():
        for line in lines:
            wanted, _, marker = line.partition(";")
            found.append(f"{wanted}; " + " and ".join([f"({marker})"] * bool(marker) + [f"extra == '{extra}'"]))
    return found


def light_site(folder: Path, *names: str) -> Path:
    """Fill a folder with links to these distributions, and to ccnn_zoo as a wheel would install it."""
    for name in required(*names) - {"ccnn-zoo"}:
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(package.locate_file(top))
    (folder / "ccnn_zoo").mkdir()
    for child in (REPOSITORY / "ccnn_zoo").iterdir():
        (folder / "ccnn_zoo" / child.name).symlink_to(child)
    for child in ("export", "hub"):
        (folder / "ccnn_zoo" / child).symlink_to(REPOSITORY / child)
    whole = any(_parsed(name)[0] == "ccnn-zoo" for name in names)
    name = "ccnn-zoo" if whole else "ccnn-runtime"
    info = folder / f"{name.replace('-', '_')}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version('ccnn-zoo')}\n")
    return folder


def light_python(site: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that sees the standard library and ``site``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
