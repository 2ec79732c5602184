"""With what a run was made: packages, source and machine."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

import ccnn_zoo
from ccnn_zoo._files import replacing

_RECORDED = ("ccnn-zoo", "torch", "torchvision", "timm", "accelerate", "numpy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a training computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in _RECORDED}}


def git_revision() -> str | None:
    """Return the commit of the checkout that ccnn_zoo runs from, with ``-dirty`` if it was changed, or None."""
    package = Path(ccnn_zoo.__file__).parent
    # An installed package may lie in a checkout of something else.
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None


def write_environment(path: Path, accelerator: Accelerator) -> None:
    """Write versions, git revision, device and number of processes as JSON.

    Raises:
        RepositoryError: the folder cannot be written.
    """
    values = {
        "versions": package_versions(),
        "git_revision": git_revision(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "machine": platform.platform(),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
