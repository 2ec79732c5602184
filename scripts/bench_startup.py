"""Time `ccnn classify` of one picture from start to printed label, beside bare onnxruntime with the same network.

    python scripts/bench_startup.py --output docs/startup.md

Rounds alternate between the ways, each in a process of its own; a way's figures are those of its fastest round, so
that other load on the machine falls on all alike. Memory is the largest resident size of the process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from documents import write

CCNN = Path(sys.executable).with_name("ccnn")
BARE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
batch = numpy.random.default_rng(0).standard_normal((1, 3, 224, 224), numpy.float32)
print(session.run(None, {session.get_inputs()[0].name: batch})[0].argmax())
"""
PREPROCESSED = """
import sys
import numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
picture = Image.open(sys.argv[2]).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
batch = (numpy.asarray(picture, numpy.float32).transpose(2, 0, 1)[None] / 255 - 0.45) / 0.225
print(session.run(None, {session.get_inputs()[0].name: batch})[0].argmax())
"""
EXPORT = """
import sys, timm, torch, ccnn_zoo
from ccnn_zoo import export
torch.manual_seed(0)
export.to_onnx(timm.create_model("resnet18").eval(), sys.argv[1], labels=[f"class {i}" for i in range(1000)])
"""


class Run(NamedTuple):
    """One process: seconds from start to end, seconds of CPU time, largest resident size in MB."""

    seconds: float
    cpu: float
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, help="an exported ResNet-18; left out, it is exported first")
    parser.add_argument("--picture", type=Path, help="left out, one of 500 x 375 pixels is made")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network = args.network or _exported(Path(folder))
        picture = args.picture or _picture(Path(folder))
        ways = {
            "onnxruntime alone, random input": [sys.executable, "-c", BARE, network],
            "onnxruntime and Pillow, the picture": [sys.executable, "-c", PREPROCESSED, network, picture],
            "`ccnn classify`": [CCNN, "classify", picture, "--model", network, "--device", "cpu"],
            "Python alone": [sys.executable, "-c", "pass"],
        }
        runs = {name: [] for name in ways}
        for round_ in range(args.rounds + 1):
            for name, command in ways.items():
                run = _measured(command)
                if round_ > 0:  # the first fills the disk's cache
                    runs[name].append(run)
    text = "\n".join(_report(args, runs)) + "\n"
    print(text)
    if args.output:
        write(args.output, [text])


def _exported(folder: Path) -> Path:
    path = folder / "resnet18.onnx"
    subprocess.run([sys.executable, "-c", EXPORT, path], check=True)
    return path


def _picture(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    path = folder / "picture.jpg"
    smooth = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(smooth).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def _measured(command: list[str | Path]) -> Run:
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printed = process.stdout.read()  # the label; then the process ends
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or (command[-1] != "pass" and not printed):
        raise SystemExit(f"{command} failed: {process.stderr.read().decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _report(args: argparse.Namespace, runs: dict[str, list[Run]]) -> list[str]:
    bare = next(iter(runs.values()))
    fastest = min(run.seconds for run in bare)
    cpu = min(run.cpu for run in bare)
    memory = statistics.median(run.megabytes for run in bare)
    lines = [
        "# Starting `ccnn classify`",
        "",
        f"Written by `scripts/bench_startup.py`: one picture, ResNet-18 at 224x224, {_cpu_name()}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f} as it ended, Python {platform.python_version()}, onnxruntime "
        f"{_version('onnxruntime-gpu') or _version('onnxruntime')}, torch {_version('torch') or 'not installed'}.",
        "",
        f"From the start of the process to its end, fastest of {args.rounds} alternating rounds; in brackets the "
        "median. Where other work takes the cores, seconds grow and CPU seconds hardly do: the latter, and the "
        "ratios, are what counts then.",
        "",
        "| what | seconds | ratio | CPU seconds | ratio | resident MB | more than onnxruntime alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        seconds = min(run.seconds for run in measured)
        middle = statistics.median(run.seconds for run in measured)
        used = min(run.cpu for run in measured)
        resident = statistics.median(run.megabytes for run in measured)
        lines.append(
            f"| {name} | {seconds:.2f} ({middle:.2f}) | {seconds / fastest:.2f} | {used:.2f} | {used / cpu:.2f} "
            f"| {resident:.0f} | {resident - memory:+.0f} |"
        )
    return lines


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
