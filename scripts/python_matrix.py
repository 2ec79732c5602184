"""Try what pyproject.toml claims: every Python, and the lowest versions of the dependencies.

    python scripts/python_matrix.py                      # all, one after the other
    python scripts/python_matrix.py --only 3.12 lowest

Each gets an environment of its own, made by uv in a temporary folder and removed again. What uv keeps in its cache are
23 GB after all of them (`uv cache clean` gives them back). In it every module is imported, and a network is trained for
an epoch, folded, exported, published to a folder, downloaded and run on real digits. Pythons that are not on this
machine are named and left out; uv is told to download none. The outcome is kept in docs/pythons.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pythons.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOWEST = "lowest"
EXTRAS = "[all]"
HEAD = """# Pythons and versions that were tried

Written by `scripts/python_matrix.py` (`make matrix`). In an environment of its own, each Python imported every module,
and trained a network on real digits for an epoch, folded, exported, published, downloaded and ran it: the network's
file gave the class that torch gives on 360 of 360 digits. A Python gets the versions of
[constraints.txt](../constraints.txt); *lowest* is the oldest Python with the lowest version of each dependency that
[pyproject.toml](../pyproject.toml) names, the extras' too.

| tried | outcome | versions |
|---|---|---|
"""
JOB = """
import importlib, pkgutil, platform, tempfile
from dataclasses import replace
from importlib.metadata import version

import timm, torch
import ccnn_zoo
from ccnn_zoo import demo
from ccnn_zoo.train import Recipe

for module in pkgutil.walk_packages(ccnn_zoo.__path__, "ccnn_zoo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
model = timm.create_model("ccnn_resnet18", branches=2).eval()
images = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    assert torch.equal(ccnn_zoo.fold(model)(images), model(images))
with tempfile.TemporaryDirectory() as folder:
    recipe = replace(Recipe.load("digits"), epochs=1, branches=2, warmup=0)
    report = demo.run(folder, recipe=recipe, device="cpu", say=lambda text: None, progress=False)
assert report.same_class_as_torch == report.images == 360
libraries = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxscript", "huggingface_hub", "accelerate")
print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries), sep=", ")
"""


def main() -> int:
    """Try one after the other; return 0 if all that could be tried work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*PYTHONS, LOWEST), default=(*PYTHONS, LOWEST))
    options = parser.parse_args()
    failed = False
    for label in options.only:
        interpreter = find(oldest() if label == LOWEST else label)
        if interpreter is None:
            keep(label, "not tried", "not on this machine")
            continue
        print(f"{label}: installing and trying, which takes minutes", flush=True)
        try:
            keep(label, "works", try_one(interpreter, lowest=label == LOWEST))
        except subprocess.CalledProcessError as error:
            failed = True
            print(error.stdout, error.stderr, sep="\n", flush=True)
            keep(label, "**fails**", error.stderr.strip().splitlines()[-1].replace("|", "\\|"))
    return int(failed)


def keep(label: str, *columns: str) -> None:
    """Print an outcome and put it into the page, in place of what it says of this Python."""
    print(f"{label}: {', '.join(columns)}", flush=True)
    rows = dict(re.findall(r"^\| (\S+) (\|.*)$", PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "", re.M))
    rows[label] = f"| {' | '.join(columns)} |"
    table = "".join(f"| {each} {rows[each]}\n" for each in (*PYTHONS, LOWEST) if each in rows)
    PAGE.write_text(HEAD + table, encoding="utf-8")


def oldest() -> str:
    """Return the oldest Python that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return re.search(r"\d+\.\d+", project["requires-python"])[0]


def find(python: str) -> str | None:
    """Return an interpreter of this version: of pyenv, else on the path, if it runs."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = [str(path) for path in versions.glob(f"{python}.*/bin/python{python}")]
    for place in (*sorted(places), shutil.which(f"python{python}")):
        if place and subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            return place
    return None


def try_one(interpreter: str, *, lowest: bool) -> str:
    """Make an environment, run :data:`JOB` in it, and remove it; return what the job printed last."""
    uv = [sys.executable, "-m", "uv", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="ccnn-pythons-", ignore_cleanup_errors=True) as folder:
        python = str(Path(folder, "environment", "Scripts" if os.name == "nt" else "bin", "python"))
        # What the tests passed with; a newer Python may need newer versions than these.
        choice = ["--resolution=lowest-direct"] if lowest else ["--constraints", str(ROOT / "constraints.txt")]
        steps = (
            [*uv, "venv", "--python", interpreter, str(Path(folder, "environment"))],
            [*uv, "pip", "install", "--python", python, *choice, f"{ROOT}{EXTRAS}"],
            [python, "-c", JOB],
        )
        environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_TIMEOUT": "600"}
        environment |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        for step in steps:
            done = subprocess.run(step, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
