"""Time plain and calibrated ResNet-18 side by side in torch, onnxruntime (fp32, fp16, int8) and OpenVINO.

    python scripts/bench_inference.py --output docs/inference_speed.md
    python scripts/bench_inference.py --uncertainty 9  # what uncertainty costs: docs/uncertainty_cost.md

The networks are exported to a folder and found there again by the next run. Rounds alternate between all ways, so that
other load on the machine falls on all alike, and times are compared within rounds; each way's fastest and median round
are shown, and its processor time, which other load changes little.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bench_uncertainty
import numpy as np
import onnxruntime
import timm
import torch
from bench_machine import gemm_seconds, machine
from bench_rounds import Way, between, percentile, ratio, ratios, verdict
from documents import write
from PIL import Image
from real_data import real_data
from torch.utils.flop_counter import FlopCounterMode

import ccnn_zoo
from ccnn_zoo import export, runtime
from ccnn_zoo.errors import CCNNError
from ccnn_zoo.runtime._preprocess import preprocess

SEED = 0
BASE = ("plain", "onnxruntime fp32")
GEMM = 1536
MEASURED = {"fp32": "fp32 measured", "int8": "int8 measured"}  # `ccnn export --measure`
FILES = {
    **export.FILES,
    MEASURED["fp32"]: "onnx/model_measured.onnx",
    MEASURED["int8"]: "onnx/model_quantized_measured.onnx",
}
RUNS = {1: 3}
"""By size of the batch, runs of a way in a round, 2 by default; the fastest of a round counts for the ratios."""
PAUSE = 0.1
"""Seconds in which the threads of the engine before, which wait by spinning, give up their cores."""
PRECISIONS = {f"onnxruntime {name}": name for name in FILES} | {"OpenVINO": "fp32"}


class _Table(NamedTuple):
    """What all ways of one table have in common."""

    threads: int
    batch: int
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(tempfile.gettempdir()) / "ccnn-bench-networks"
    parser.add_argument("--networks", type=Path, default=default, help="folder for the exported networks")
    parser.add_argument("--branches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--tables",
        nargs="+",
        # In batches of 32, K=8 in all engines takes 20 GB.
        default=["1:1:15:2,4,8", "2:1:15:2,4,8", "2:32:5:2,4", "2:32:3:8"],
        help="THREADS:BATCH:ROUNDS:BRANCHES of each table, whose networks are in memory together",
    )
    parser.add_argument("--precisions", nargs="+", default=list(FILES), help="what to export if not there")
    parser.add_argument("--compile", action="store_true", help="add torch.compile, which needs a C compiler")
    parser.add_argument(
        "--photos", type=Path, default=real_data() / "imagenet-sample", help="photographs to measure int8's ranges on"
    )
    parser.add_argument("--export-only", action="store_true", help="stop before timing")
    parser.add_argument("--output", type=Path, help="write the tables to this Markdown file")
    parser.add_argument(
        "--uncertainty",
        type=int,
        metavar="ROUNDS",
        help="instead, write docs/uncertainty_cost.md, of batches of 32",
    )
    args = parser.parse_args()
    if args.uncertainty:
        bench_uncertainty.measure(args.uncertainty, threads=1)
        return
    models = {"plain": _model(1)} | {f"K={k}": _model(k) for k in args.branches}
    notes = [note for name, model in models.items() for note in _export(model, args.networks / name, args)]
    if args.export_only:
        return
    lines = _description(args)
    for table in args.tables:
        threads, batch, rounds = map(int, table.split(":")[:3])
        torch.set_num_threads(threads)
        branches = [k for k in map(int, table.split(":")[3].split(",")) if k in args.branches]
        timed = {name: models[name] for name in ("plain", *(f"K={k}" for k in branches))}
        lines += ["", *_timed(timed, branches, _Table(threads, batch, rounds), args)]
        text = "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"
        if args.output:
            write(args.output, [text])
    print(text)


def _timed(
    models: dict[str, torch.nn.Module], branches: list[int], table: _Table, args: argparse.Namespace
) -> list[str]:
    """Return a table and what it shows; the sessions and what they keep end with the call."""
    ways, peak = _measure(models, table, args)
    return [*_table(ways, models, table, peak), "", *_verdicts(ways, branches)]


def _model(branches: int) -> torch.nn.Module:
    torch.manual_seed(SEED)
    if branches == 1:
        return timm.create_model("resnet18").eval()
    return timm.create_model("ccnn_resnet18", branches=branches).eval()


def _export(model: torch.nn.Module, folder: Path, args: argparse.Namespace) -> list[str]:
    """Export in every precision what is not there yet; return what the reader must know of it."""
    notes = []
    photos = _photographs(model, args.photos)
    for precision in args.precisions:
        path, note = folder / FILES[precision], folder / f"{precision}.txt"
        if not path.exists() and not note.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = precision.split()[0]
            ranges = photos if kind == "int8" else None
            try:
                report = export.to_onnx(
                    model, path, precision=kind, images=photos[:4], int8_images=ranges, measure=kind != precision
                )
            except CCNNError as error:
                note.write_text(f"- {folder.name}, {precision}: not exported. {error}\n")
            else:
                print(report)
        notes += note.read_text().splitlines() if note.exists() else []
    return notes


def _photographs(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    metadata = export.metadata_of(model)
    paths = sorted(folder.glob("*.JPEG"))[::3]
    if not paths:
        raise SystemExit(f"no photographs at {folder}; name a folder with --photos")
    images = [preprocess(Image.open(path).convert("RGB"), metadata) for path in paths]
    return torch.from_numpy(np.stack(images))


def _description(args: argparse.Namespace) -> list[str]:
    try:
        import openvino

        openvino_version = f", openvino {openvino.__version__}"
    except ImportError:
        openvino_version = ""
    return [
        "# Speed of inference",
        "",
        f"Written by `scripts/bench_inference.py`. {machine()}, python "
        f"{platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, onnxruntime "
        f"{onnxruntime.__version__}{openvino_version}. Seed {SEED}, weights untrained, images of 224x224.",
        "",
        "Other work shared this machine while this ran; each table says the load. All ways of one table ran in turn, "
        "round by round, so that the load fell on all alike. *Ratio* is the time against plain ResNet-18 in "
        "onnxruntime fp32 in the same round, each by its fastest run there, median over the rounds (below 1 is "
        "faster). *By CPU* is the same from processor time: with one thread it hardly depends on the load, and is the "
        "figure to trust; with more, threads that wait for each "
        f"other spend it too. *Peak* is the share of the arithmetic rate of a {GEMM}x{GEMM} float32 matrix product in "
        "torch in the same rounds, by processor time; above 100 % the convolutions are faster than that product, which "
        "itself stops short of what the cores can do. *fp32 measured* and *int8 measured* are what `ccnn export "
        "--measure` made on this machine: it timed grouped convolutions and the network written branch by branch. "
        f"Between two ways all threads rested {PAUSE:g} s, and each ran once untimed in every round. What has no row "
        "was not exported for this run.",
    ]


def _measure(models: dict[str, torch.nn.Module], table: _Table, args: argparse.Namespace) -> tuple[list[Way], float]:
    """Return every way with its times, and the operations a second of the fastest matrix product."""
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(table.batch, 3, 224, 224)).astype(np.float32)
    ways = [way for name, model in models.items() for way in _ways(name, model, images, table.threads, args)]
    for way in ways:
        way.runs = RUNS.get(table.batch, 2)
    gemm = []
    for _ in range(table.rounds + 1):
        gemm.append(gemm_seconds(GEMM))
        for way in ways:
            time.sleep(PAUSE)
            way.run()  # finds its memory
            for _ in range(way.runs):
                way.timed()
    for way in ways:  # the first round warms up
        del way.wall[: way.runs], way.processor[: way.runs]
    return ways, 2 * GEMM**3 / min(gemm)


def _ways(name: str, model: torch.nn.Module, images: np.ndarray, threads: int, args: argparse.Namespace) -> list[Way]:
    folded = ccnn_zoo.fold(model).eval()
    tensor = torch.from_numpy(images)
    ways = [Way(name, "torch eager", _in_torch(folded, tensor))]
    if args.compile:
        ways.append(Way(name, "torch.compile", _in_torch(torch.compile(folded), tensor)))
    for engine, precision in PRECISIONS.items():
        path = args.networks / name / FILES[precision]
        device = "openvino" if engine == "OpenVINO" else "cpu"
        if path.exists():
            try:
                classifier = runtime.load(path, device=device, threads=threads, batch_size=len(images))
            except CCNNError as error:
                print(f"{name}, {engine}: {error}")
            else:
                ways.append(Way(name, engine, lambda c=classifier: c.predict(images)))
    return ways


def _in_torch(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def _table(ways: list[Way], models: dict[str, torch.nn.Module], table: _Table, peak: float) -> list[str]:
    base = next(way for way in ways if (way.network, way.engine) == BASE)
    batch = table.batch
    operations = {name: batch * _operations(model) for name, model in models.items()}
    rows = [
        f"| {way.network} | {way.engine} | {1000 * min(way.wall):.1f} | {1000 * statistics.median(way.wall):.1f} | "
        f"{1000 * percentile(way.wall, 0.9):.1f} | {1000 * percentile(way.wall, 0.99):.1f} | "
        f"{batch / min(way.wall):.1f} | {ratio(way, base, 'wall'):.2f} | "
        f"{ratio(way, base, 'processor'):.2f} | {operations[way.network] / min(way.processor) / peak:.0%} |"
        for way in ways
    ]
    return [
        f"## Batch {batch}, {table.threads} thread{'s' * (table.threads > 1)}",
        "",
        f"{len(base.wall) // base.runs} rounds of {base.runs} runs, load {os.getloadavg()[0]:.0f} at the end; the "
        f"matrix product reached {peak / 1e9:.0f} GFLOP a second of processor time, plain ResNet-18 needs "
        f"{operations['plain'] / batch / 1e9:.2f} GFLOP an image.",
        "",
        "| network | engine | fastest, ms | median | 90 % | 99 % | images/s | ratio | by CPU | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _verdicts(ways: list[Way], branches: list[int]) -> list[str]:
    """Say of each aim whether it holds, by the clock and by processor time."""
    measured = {(way.network, way.engine): way for way in ways}

    def line(text: str, key: tuple[str, str], over: tuple[str, str], bound: float, *, least: bool = False) -> str:
        if key not in measured:
            return f"- {text}: not measured."
        way, other = measured[key], measured[over]
        found = [between(ratios(way, other, clock)) for clock in ("wall", "processor")]
        judged = verdict(found, bound, least=least)
        clock, processor = ("{1:.3f} ({0:.3f} to {2:.3f})".format(*each) for each in found)
        return f"- {text}: {clock} by the clock, {processor} by processor time. **{judged}**"

    aims = [
        line(f"{name} K={k} takes at most {k} times plain", (f"K={k}", f"onnxruntime {name}"), BASE, float(k))
        for k in branches
        for name in ("fp32", MEASURED["fp32"])
    ]
    if 2 in branches:
        aims += [
            line(f"{name} K=2 takes at most 0.7 times plain fp32", ("K=2", f"onnxruntime {name}"), BASE, 0.7)
            for name in ("int8", MEASURED["int8"])
        ]
    for name in ("plain", *(f"K={k}" for k in branches)):
        text = f"{name}: torch eager takes at least 1.3 times onnxruntime"
        aims.append(line(text, (name, "torch eager"), (name, BASE[1]), 1.3, least=True))
    text = "Aims, by the median of the rounds, and between which of them it lies by 95 % (in few rounds, all of them):"
    return [text, "", *aims]


def _operations(model: torch.nn.Module) -> int:
    """Count multiplications and additions of one image in the folded network."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        ccnn_zoo.fold(model).eval()(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
