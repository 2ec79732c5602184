"""A folder that is to Python an environment with a few packages and what they require, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]


def required(*names: str) -> set[str]:
    """Return the distributions of these names and all that they require, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            requirements = map(Requirement, distribution(name).requires or ())
        except PackageNotFoundError:  # for another platform
            continue
        if name not in found:
            found.add(name)
            waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def light_site(folder: Path, *names: str) -> Path:
    """Fill a folder with links to these distributions, and to ccnn_zoo as a wheel would install it."""
    for name in required(*names):
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
    info = folder / "ccnn_zoo-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ccnn-zoo\nVersion: {version('ccnn-zoo')}\n")
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
