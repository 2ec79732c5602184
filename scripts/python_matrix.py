"""Try what pyproject.toml claims: every Python, the lowest versions of the dependencies, and installs without extras.

    python scripts/python_matrix.py                      # all, one after the other
    python scripts/python_matrix.py --only 3.12 lowest
    python scripts/python_matrix.py --only runtime       # without torch: a minute

Each gets an environment of its own, made by uv in a temporary folder and removed again. What uv keeps in its cache are
23 GB after all of them (`uv cache clean` gives them back). In it every module is imported, and a network is trained for
an epoch, folded, exported, published to a folder, downloaded and run on real digits. The rows *base* and *runtime* do
what can be done after `pip install ccnn-zoo` and `pip install ccnn-runtime` alone. Pythons that are not on this
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
LOWEST, BASE, RUNTIME = "lowest", "base", "runtime"
LABELS = (*PYTHONS, LOWEST, BASE, RUNTIME)
INSTALLED = {BASE: f"{ROOT}", RUNTIME: f"{ROOT / 'ccnn-runtime'}"}
EVERYTHING = f"{ROOT}[all]"
HEAD = """# Pythons and versions that were tried

Written by `scripts/python_matrix.py` (`make matrix`). In an environment of its own, each Python imported every module,
and trained a network on real digits for an epoch, folded, exported, published, downloaded and ran it: the network's
file gave the class that torch gives on 360 of 360 digits. A Python gets the versions of
[constraints.txt](../constraints.txt); *lowest* is the oldest Python with the lowest version of each dependency that
[pyproject.toml](../pyproject.toml) names, the extras' too. *base* is the oldest Python after `pip install .`, without
extras: it built, calibrated, trained by a step, folded, saved and loaded networks. *runtime* is the same Python after
`pip install ./ccnn-runtime`, without torch: it ran a file of a network, and gave what torch gives.

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
    recipe = replace(Recipe.load("digits"), epochs=1, branches=2, warmup=0, validation=0.2)
    report = demo.run(folder, recipe=recipe, device="cpu", say=lambda text: None, progress=False)
assert report.same_class_as_torch == report.images == 360
libraries = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxscript", "huggingface_hub", "accelerate")
print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries), sep=", ")
"""
BASE_JOB = """
import importlib.util, platform
from importlib.metadata import version

import ccnn_zoo, timm, torch
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint

for absent in ("onnx", "onnxruntime", "accelerate", "matplotlib", "typer", "sklearn", "scipy"):
    assert importlib.util.find_spec(absent) is None, absent
images = torch.rand(2, 3, 64, 64)
for network in (
    timm.create_model("ccnn_resnet18", branches=2, num_classes=5),
    timm.create_model("ccnn", base="resnet18", branches=2, num_classes=5),
):
    optimizer = ccnn_zoo.CSGD(network, lr=0.1)
    torch.nn.functional.cross_entropy(network(images), torch.tensor([1, 2])).backward()
    optimizer.step()
    network.eval()
    assert torch.equal(ccnn_zoo.fold(network)(images), network(images))
    save_checkpoint("network.safetensors", network, TrainingRecord("noise", seed=0, epochs=1))
    assert torch.equal(load_checkpoint("network.safetensors")[0].eval()(images), network(images))
try:
    import ccnn_zoo.export
except ccnn_zoo.errors.MissingPackageError as error:
    assert "ccnn-zoo[export]" in str(error)
else:
    raise AssertionError("export needs more than the base")
libraries = ("torch", "torchvision", "timm", "numpy", "huggingface_hub")
print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries), sep=", ")
"""
RUNTIME_JOB = """
import importlib.metadata, importlib.util, platform, sys
from importlib.metadata import version

import numpy as np
from ccnn_zoo import runtime

for absent in ("torch", "torchvision", "timm", "onnx", "safetensors"):
    assert importlib.util.find_spec(absent) is None, absent
classifier = runtime.load(sys.argv[1], device="cpu")
np.testing.assert_allclose(classifier.predict(np.load(sys.argv[2])), np.load(sys.argv[3]), atol=1e-4)
assert classifier.classify([np.zeros((9, 9, 3), np.uint8)])[0].error is None
names = {found.metadata["Name"] for found in importlib.metadata.distributions()}
ort = ({"onnxruntime-gpu", "onnxruntime"} & names).pop()
libraries = (ort, "numpy", "pillow", "huggingface_hub")
print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries), sep=", ")
"""


def main() -> int:
    """Try one after the other; return 0 if all that could be tried work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LABELS, default=LABELS)
    options = parser.parse_args()
    failed = False
    for label in options.only:
        interpreter = find(label if label in PYTHONS else oldest())
        if interpreter is None:
            keep(label, "not tried", "not on this machine")
            continue
        print(f"{label}: installing and trying, which takes minutes", flush=True)
        try:
            keep(label, "works", try_one(interpreter, label))
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
    table = "".join(f"| {each} {rows[each]}\n" for each in LABELS if each in rows)
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


def network_for(folder: Path) -> list[str]:
    """Write a network, pictures for it, and what torch says of them; return the three files."""
    import numpy as np
    import timm
    import torch

    import ccnn_zoo  # noqa: F401, its networks
    from ccnn_zoo.export import to_onnx

    model = timm.create_model("ccnn_resnet20_cifar", branches=2, num_classes=5).eval()
    images = torch.rand(4, 3, 32, 32)
    files = [folder / name for name in ("network.onnx", "images.npy", "logits.npy")]
    to_onnx(model, files[0])
    np.save(files[1], images.numpy())
    np.save(files[2], model(images).detach().numpy())
    return list(map(str, files))


def try_one(interpreter: str, label: str) -> str:
    """Make an environment, run a job in it, and remove it; return what the job printed last."""
    uv = [sys.executable, "-m", "uv", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="ccnn-pythons-", ignore_cleanup_errors=True) as folder:
        python = str(Path(folder, "environment", "Scripts" if os.name == "nt" else "bin", "python"))
        # What the tests passed with; a newer Python may need newer versions than these.
        choice = ["--resolution=lowest-direct"] if label == LOWEST else ["--constraints", str(ROOT / "constraints.txt")]
        job = {BASE: [BASE_JOB], RUNTIME: [RUNTIME_JOB]}.get(label, [JOB])
        if label == RUNTIME:
            job += network_for(Path(folder))
        steps = (
            [*uv, "venv", "--python", interpreter, str(Path(folder, "environment"))],
            [*uv, "pip", "install", "--python", python, *choice, INSTALLED.get(label, EVERYTHING)],
            [python, "-c", *job],
        )
        environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_TIMEOUT": "600"}
        environment |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        for step in steps:
            done = subprocess.run(step, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
