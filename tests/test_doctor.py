"""`ccnn doctor`, as a user runs it: every backend is tried, and none takes another along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccnn_zoo.runtime import Cuda

CCNN = Path(sys.executable).with_name("ccnn")
EXAMPLE = Path(__file__).with_name("example_backend") / "src"
BACKENDS = """
import ctypes
from ccnn_zoo.runtime import Cpu, Problem
class Crashing(Cpu):
    name = "crashing"
    def probe(self):
        ctypes.string_at(0)
class Lacking(Cpu):
    name = "lacking"
    def problem(self):
        return Problem("it lacks [a licence].", "pip install licence")
class Talking(Cpu):
    name = "talking"
    def probe(self):
        print("lots of", "talk")
        super().probe()
"""


def doctor(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CCNN, "doctor", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(EXAMPLE)]), "COLUMNS": "200"},
    )


def site(folder: Path, code: str) -> Path:
    """Return a folder with code that every Python process runs first."""
    (folder / "sitecustomize.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "odd_backends.py").write_text(BACKENDS)
    (folder / "odd-2.5.dist-info").mkdir()
    (folder / "odd-2.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 2.5\n")
    (folder / "odd-2.5.dist-info" / "entry_points.txt").write_text(
        "[ccnn_zoo.runtimes]\n"
        "crashing = odd_backends:Crashing\nlacking = odd_backends:Lacking\ntalking = odd_backends:Talking\n"
        "gone = odd_backends:Gone\nreference = ccnn_example_backend:Reference\n"
    )
    return folder


@pytest.fixture(scope="module")
def report(packages) -> dict:
    run = doctor("--json", "--provider", "/nowhere/provider.so", path=packages)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout) | {"by_name": {f["backend"]: f for f in json.loads(run.stdout)["findings"]}}


def test_what_works_is_what_ran(report):
    found = report["by_name"]
    for name in ("cpu", "torch", "reference", "talking"):
        assert found[name]["works"], found[name]
        assert found[name]["reason"] == found[name]["remedy"] == ""
    assert found["cpu"]["origin"] == "built in"
    assert found["talking"]["origin"] == "odd 2.5"


def test_what_does_not_work_has_its_reason_and_remedy(report):
    found = report["by_name"]
    assert not any(found[name]["works"] for name in ("crashing", "lacking", "gone", "/nowhere/provider.so"))
    assert found["crashing"]["reason"] == "it crashed (SIGSEGV)."
    assert (found["lacking"]["reason"], found["lacking"]["remedy"]) == ("it lacks [a licence].", "pip install licence")
    assert "'gone' of odd cannot be loaded" in found["gone"]["reason"]
    assert "library must be the path" in found["/nowhere/provider.so"]["reason"]


@pytest.mark.skipif(Cuda().problem() is None, reason="CUDA runs here")
def test_missing_cuda_is_explained_and_not_the_end(report):
    problem = Cuda().problem()
    for name in ("cuda", "tensorrt"):
        finding = report["by_name"][name]
        assert not finding["works"]
        assert (finding["reason"], finding["remedy"]) == (problem.reason, problem.remedy)


def test_versions_are_those_of_the_libraries(report):
    import onnxruntime
    import torch

    assert report["versions"]["onnxruntime"] == onnxruntime.__version__
    assert report["versions"]["CUDA that onnxruntime was built for"] == (onnxruntime.cuda_version or None)
    assert any(wheel.endswith(onnxruntime.__version__) for wheel in report["wheels"])
    number = torch.backends.cudnn.version()
    if number is not None:  # torch's own count of the same library
        assert report["versions"]["cuDNN"] == f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def test_the_table_has_a_line_per_backend_and_the_commands_unbroken(packages):
    packages = site(packages, "import os, sys\nif sys.argv[0] == '-m' and sys.argv[-1] == 'torch': os.abort()\n")
    run = doctor(path=packages)
    (packages / "sitecustomize.py").unlink()
    assert run.returncode == 0, run.stderr
    lines = {line.split()[0]: line for line in run.stdout.splitlines() if line.strip()}
    assert "built in" in lines["cpu"]
    assert "works" in lines["cpu"]
    assert "it lacks [a licence]." in lines["lacking"]
    assert "it crashed (SIGABRT)." in lines["torch"]
    assert "To mend lacking:  pip install licence" in run.stdout.splitlines()
    where = "GPU" if "works" in lines["cuda"] else "CPU"
    assert f"device='auto' runs on the {where} here." in run.stdout.splitlines()


def test_without_a_working_cpu_the_exit_code_is_1(tmp_path):
    run = doctor("--json", path=site(tmp_path, "import os, sys\nif sys.argv[0] == '-m': os.abort()\n"))
    assert run.returncode == 1
    assert {f["reason"] for f in json.loads(run.stdout)["findings"]} == {"it crashed (SIGABRT)."}


def test_without_onnxruntime_it_says_what_to_install(tmp_path):
    code = "import sys\nsys.modules['onnxruntime'] = None\n"
    run = doctor(path=site(tmp_path, code))
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: onnxruntime cannot be imported")
    assert 'pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]"' in run.stderr
    assert "Traceback" not in run.stderr
