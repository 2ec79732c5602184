"""Try what pyproject.toml claims: every Python, and the lowest versions of the dependencies.

    python scripts/python_matrix.py                  # every Python that is on this machine
    python scripts/python_matrix.py --pythons 3.12
    python scripts/python_matrix.py --lowest         # the lowest versions that pyproject.toml allows

Each gets an environment of its own, made by uv in a temporary folder and removed again: 3 GB to download for the first,
7 GB of disk at a time. In it a network is trained for an epoch, folded, exported, published to a folder, downloaded and
run, and every module is imported. Pythons that are not on this machine are named and left out; uv is told to download
none.
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
JOB = """
import importlib, pkgutil, sys, tempfile
from dataclasses import replace
from importlib.metadata import version

import timm, torch
import ccnn_zoo
from ccnn_zoo import demo
from ccnn_zoo.train import Recipe

LACKING = {"ray", "pycocotools", "datasets", "openvino", "pyarrow", "tensorboard", "prometheus_client", "starlette"}
for module in pkgutil.walk_packages(ccnn_zoo.__path__, "ccnn_zoo."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in LACKING:
            raise
model = timm.create_model("ccnn_resnet18", branches=2).eval()
images = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    assert torch.equal(ccnn_zoo.fold(model)(images), model(images))
with tempfile.TemporaryDirectory() as folder:
    recipe = replace(Recipe.load("digits"), epochs=1, branches=2, warmup=0)
    report = demo.run(folder, recipe=recipe, device="cpu", say=lambda text: None, progress=False)
assert report.same_class_as_torch == report.images == 360
libraries = ("torch", "torchvision", "timm", "numpy", "onnx", "huggingface_hub", "accelerate")
print("python", sys.version.split()[0], *(f"{name} {version(name)}" for name in libraries), sep=", ")
"""


def main() -> int:
    """Try one after the other; return 0 if all that could be tried work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13", "3.14"])
    parser.add_argument("--lowest", action="store_true", help="the lowest versions, on the oldest Python only")
    options = parser.parse_args()
    pythons = [oldest()] if options.lowest else options.pythons
    failed = []
    with tempfile.TemporaryDirectory(prefix="ccnn-pythons-") as folder:
        for python in pythons:
            label = f"{python}, lowest versions" if options.lowest else python
            interpreter = find(python)
            if interpreter is None:
                print(f"SKIPPED {label}: no python{python} on this machine", flush=True)
                continue
            try:
                print(f"works: {try_one(interpreter, Path(folder), lowest=options.lowest)}", flush=True)
            except subprocess.CalledProcessError as error:
                print(f"FAILED {label}: {error}\n{error.stdout}\n{error.stderr}", flush=True)
                failed.append(label)
    return int(bool(failed))


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


def try_one(interpreter: str, folder: Path, *, lowest: bool) -> str:
    """Make an environment, run :data:`JOB` in it, and remove it; return what the job printed."""
    place = folder / "environment"
    # A cache beside the environments lets them share files by links; it goes with the folder.
    environment = os.environ | {"UV_CACHE_DIR": str(folder / "cache"), "UV_PYTHON_DOWNLOADS": "never"}
    environment |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "UV_HTTP_TIMEOUT": "600"}
    uv = [sys.executable, "-m", "uv", "--quiet"]
    python = str(place / ("Scripts" if os.name == "nt" else "bin") / "python")
    # What the tests passed with; a newer Python may need newer versions than these.
    choice = ["--resolution=lowest-direct"] if lowest else ["--constraints", str(ROOT / "constraints.txt")]
    steps = (
        [*uv, "venv", "--python", interpreter, str(place)],
        [*uv, "pip", "install", "--python", python, *choice, str(ROOT)],
        [python, "-c", JOB],
    )
    try:
        for step in steps:
            done = subprocess.run(step, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
