"""Measure the decoding of pictures in threads and processes, and the memory of `ccnn classify` on many pictures.

    python scripts/bench_classify.py --output docs/classify_speed.md

Ways to decode are measured side by side in one run, in rounds that alternate between them; a way's figure is its
fastest round. Memory is the peak of a process of its own, as the operating system reports it.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import timm
from bench_machine import machine
from documents import write
from PIL import Image
from real_data import real_data

import ccnn_zoo  # noqa: F401, joins timm
from ccnn_zoo import runtime
from ccnn_zoo.export import metadata_of, to_onnx
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.pictures import read
from ccnn_zoo.runtime._preprocess import preprocess
from ccnn_zoo.runtime._stream import mapped

CCNN = Path(sys.executable).with_name("ccnn")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=real_data() / "imagenet-sample", help="folder of photographs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, nargs="+", default=[200, 2000, 20000], help="numbers of small ones")
    parser.add_argument("--output", type=Path, help="write the tables to this Markdown file")
    args = parser.parse_args()
    text = "\n".join([*_description(args), "", *_decoding(args), "", *_classifying(args), "", *_memory(args)]) + "\n"
    print(text)
    if args.output:
        write(args.output, [text])


def _description(args: argparse.Namespace) -> list[str]:
    return [
        "# Classifying many pictures: speed and memory",
        "",
        f"Written by `scripts/bench_classify.py`. {machine()}, python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, pillow {PIL.__version__}, numpy {np.__version__}. "
        f"Seed {SEED}. Other work shares this machine: compare the figures of one table with each other.",
    ]


def _decoding(args: argparse.Namespace) -> list[str]:
    paths = sorted(map(str, args.photos.glob("*.JPEG")))
    metadata = metadata_of(timm.create_model("resnet18"))
    work = _Decode(metadata)
    with ProcessPoolExecutor(2) as one_pool, ProcessPoolExecutor(4) as other_pool:
        ways: dict[str, Callable[[], Iterator[np.ndarray]]] = {
            "no workers": lambda: map(work, paths),
            "1 thread": lambda: mapped(work, paths, 1, 64),
            "2 threads": lambda: mapped(work, paths, 2, 64),
            "4 threads": lambda: mapped(work, paths, 4, 64),
            "2 processes": lambda: one_pool.map(work, paths, chunksize=4),
            "4 processes": lambda: other_pool.map(work, paths, chunksize=4),
        }
        seconds = _fastest(args.rounds, {name: lambda w=way: sum(1 for _ in w()) for name, way in ways.items()})
    rows = [f"| {n} | {len(paths) / s:.0f} | {seconds['no workers'] / s:.2f} |" for n, s in seconds.items()]
    return [
        "## Decoding",
        "",
        f"{len(paths)} photographs, read, resized, cropped and normalised to 3x224x224; fastest of {args.rounds} "
        "alternating rounds. Processes send the tensors back through a pipe; their start is not counted.",
        "",
        "| way | images/s | against no workers |",
        "|---|---|---|",
        *rows,
    ]


def _classifying(args: argparse.Namespace) -> list[str]:
    paths = sorted(map(str, args.photos.glob("*.JPEG")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(timm.create_model("ccnn_resnet18", branches=2).eval(), path)
        classifier = runtime.load(path, device="cpu", batch_size=32)

        def way(workers: int) -> Callable[[], int]:
            return lambda: sum(1 for _ in classifier.classify_stream(paths, workers=workers))

        seconds = _fastest(args.rounds, {f"{workers}": way(workers) for workers in (0, 1, 2, 4)})
    rows = [f"| {n} | {len(paths) / s:.1f} | {seconds['0'] / s:.2f} |" for n, s in seconds.items()]
    return [
        "## Decoding and classifying",
        "",
        "The same photographs through `ccnn_resnet18` (K=2, fp32, untrained) on the CPU, `classify_stream` in batches "
        "of 32. The network itself uses all cores, so that workers only fill what it leaves.",
        "",
        "| workers | images/s | against none |",
        "|---|---|---|",
        *rows,
    ]


def _memory(args: argparse.Namespace) -> list[str]:
    rng = np.random.default_rng(SEED)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        to_onnx(timm.create_model("ccnn_resnet18_cifar.cifar10", pretrained=True), folder / "network.onnx")
        pictures = folder / "pictures"
        pictures.mkdir()
        made = 0
        for number in sorted(args.pictures):
            for i in range(made, number):
                noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(noise).resize((64, 64)).save(pictures / f"{i:06}.jpg")
            made = number
            rows.append(_row(folder, number))
    return [
        "## Memory",
        "",
        "`ccnn classify FOLDER --output results.csv --batch-size 32 --workers 2` with "
        "`ccnn_resnet18_cifar.cifar10` on 64x64 JPEG files, peak resident memory of the whole process.",
        "",
        "| pictures | peak memory, MB | images/s, start included |",
        "|---|---|---|",
        *rows,
    ]


def _row(folder: Path, number: int) -> str:
    output = folder / "results.csv"
    command = [CCNN, "classify", folder / "pictures", "--model", folder / "network.onnx", "--device", "cpu"]
    command += ["--batch-size", "32", "--workers", "2"]
    start = time.perf_counter()
    child = subprocess.Popen([*map(str, command), "--output", str(output)], stderr=subprocess.DEVNULL)
    peak = 0
    while child.poll() is None:
        peak = max(peak, _peak_kilobytes(child.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    lines = output.read_text().count("\n") - 1
    output.unlink()
    if child.returncode or lines != number:
        raise SystemExit(f"ccnn classify ended with {child.returncode}, {lines} of {number} results")
    return f"| {number:,} | {peak / 1000:.0f} | {number / seconds:.0f} |"


def _peak_kilobytes(pid: int) -> int:
    """Read the peak of the process's own memory; getrusage's would count what this script held when it forked."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


class _Decode:
    """Decode one file; a class, because processes must be able to receive it."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self.metadata = metadata

    def __call__(self, path: str) -> np.ndarray:
        return preprocess(read(path, 3, path), self.metadata)


def _fastest(rounds: int, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    fastest = dict.fromkeys(ways, float("inf"))
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_:  # the first warms up
                fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


if __name__ == "__main__":
    main()
