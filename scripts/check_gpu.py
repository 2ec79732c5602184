"""Run everything that needs an NVIDIA GPU, and report it.

    python scripts/check_gpu.py                          # prints the report
    python scripts/check_gpu.py --output docs/gpu.md     # and keeps it

It tries every backend as `ccnn doctor` does, runs all tests marked `gpu`, and times ResNet-18, plain and with K
branches, in every way that the runtime has; the report grows as it goes. Where only torch sees the GPU, what needs
onnxruntime's CUDA is left out. Without a GPU it says what is missing, writes nothing and ends with 2; with 1 if a test
failed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from documents import write

from ccnn_zoo import runtime
from ccnn_zoo.errors import CCNNError
from ccnn_zoo.runtime import Backend, Cuda, TensorRT
from ccnn_zoo.runtime._cuda import CONV_SEARCHES
from ccnn_zoo.runtime._nvidia import cuda_problem, tensorrt_problem
from ccnn_zoo.runtime.doctor import Report, examine

if TYPE_CHECKING:
    from torch import nn

Way: TypeAlias = Callable[[], np.ndarray]

FAILURES = (CCNNError, RuntimeError)  # of the runtime, and of torch
ROOT = Path(__file__).parents[1]
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short"]
TESTS += ["--continue-on-collection-errors"]  # a machine that is lent lacks some packages
OUTCOMES = ("PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write the report to this Markdown file")
    args = parser.parse_args()
    problem = cuda_problem()
    if problem is not None and not _torch_sees_gpu():
        print(f"no GPU to check: {problem.reason}\nTo mend it:  {problem.remedy}", file=sys.stderr)
        return 2
    report = examine()
    code, outcomes = _tests()
    lines = [*_head(report), "", *_findings(report), "", *_outcomes(outcomes), ""]
    _write(lines, args.output)
    with tempfile.TemporaryDirectory() as folder:
        for branches in args.branches:
            lines += _timings(args, branches, Path(folder))
            _write(lines, args.output)
    print(_text(lines))
    if not any(outcome == "PASSED" for outcome, _ in outcomes):
        print("no test ran: does torch see the GPU?", file=sys.stderr)
        return 1
    return int(code != 0)


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _write(lines: list[str], output: Path | None) -> None:
    if output:
        write(output, [_text(lines)])


def _head(report: Report) -> list[str]:
    versions = {**report.versions, "torch": version("torch"), "timm": version("timm")}
    about = "; ".join(f"{name} {value}" for name, value in versions.items() if value)
    return ["# On a GPU", "", f"Written by `scripts/check_gpu.py`. {about}."]


def _findings(report: Report) -> list[str]:
    lines = ["## Backends", "", "| backend | state | why |", "|---|---|---|"]
    for finding in report.findings:
        lines.append(f"| {finding.backend} | {'works' if finding.works else 'missing'} | {finding.reason} |")
    return lines


def _tests() -> tuple[int, list[tuple[str, str]]]:
    """Run the tests marked `gpu`; return pytest's exit code, and outcome and name of each."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    run = subprocess.run([*TESTS, *files], cwd=ROOT, capture_output=True, text=True)
    sys.stderr.write(run.stdout + run.stderr)
    words = (line.partition(" ") for line in run.stdout.splitlines())
    return run.returncode, [(first, rest) for first, _, rest in words if first in OUTCOMES]


def _outcomes(outcomes: list[tuple[str, str]]) -> list[str]:
    lines = ["## Tests", "", "| outcome | test |", "|---|---|"]
    return lines + [f"| {outcome.lower()} | {name.replace('|', '/')} |" for outcome, name in outcomes]


def _timings(args: argparse.Namespace, branches: int, folder: Path) -> list[str]:
    files, network = _exported(branches, folder)
    lines = [
        f"## ResNet-18, K = {branches}, 224 x 224",
        "",
        f"Milliseconds of one batch, fastest of {args.rounds} alternating rounds, median in brackets; images in a "
        "second of the fastest; largest difference of the logits to the CPU's, relative to their largest value.",
        "",
        "| way | batch | ms | images/s | difference |",
        "|---|---|---|---|---|",
    ]
    for size in args.batch_sizes:
        batch = np.random.default_rng(0).standard_normal((size, 3, 224, 224), np.float32)
        right = runtime.load(files["fp32"], device="cpu").predict(batch)
        ways = dict(_ways(files, network, batch))
        for name, (logits, seconds) in measured(ways, args.rounds).items():
            difference = np.abs(logits - right).max() / np.abs(right).max()
            fastest, middle = min(seconds), statistics.median(seconds)
            lines.append(
                f"| {name} | {size} | {1000 * fastest:.2f} ({1000 * middle:.2f}) | {size / fastest:.0f} "
                f"| {difference:.1e} |"
            )
    return [*lines, ""]


def measured(ways: dict[str, Way], rounds: int) -> dict[str, tuple[np.ndarray, list[float]]]:
    """Return logits and seconds of each way, in alternating rounds; one that fails is named on stderr and left out."""
    found: dict[str, np.ndarray] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 3):
        for name in list(times):
            start = time.perf_counter()
            try:
                found[name] = ways[name]()
            except FAILURES as error:
                print(f"{name}: {error}", file=sys.stderr)
                del times[name]
                continue
            if round_ >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: (found[name], seconds) for name, seconds in times.items()}


def _ways(files: dict[str, Path], network: nn.Module, batch: np.ndarray) -> Iterator[tuple[str, Way]]:
    """Yield every way to run a batch, each ending with the logits in CPU memory; one that fails is named on stderr."""
    import torch

    stream = torch.cuda.Stream()
    images = torch.from_numpy(batch).cuda()
    ways: list[tuple[str, str, Backend]] = [
        *((f"array, {search} search", "fp32", Cuda(conv_search=search)) for search in CONV_SEARCHES),
        ("array, the search that measured fastest", "fp32", Cuda(conv_search="measure")),
        ("array, fp16 file", "fp16", Cuda()),
        ("array, CUDA graph", "fp32", Cuda(cuda_graph=True)),
        ("tensor on the GPU", "fp32", Cuda()),
        ("tensor on the GPU, own stream", "fp32", Cuda(stream=stream.cuda_stream)),
        ("tensor on the GPU, CUDA graph", "fp32", Cuda(cuda_graph=True)),
        ("tensor on the GPU, CUDA graph, fp16 file", "fp16", Cuda(cuda_graph=True)),
    ]
    if tensorrt_problem() is None:
        ways += [("array, TensorRT", "fp32", TensorRT()), ("array, TensorRT fp16", "fp32", TensorRT(fp16=True))]
    for name, precision, backend in ways:
        try:
            classifier = runtime.load(files[precision], device=backend, batch_size=len(batch))
        except FAILURES as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if name.startswith("tensor"):
            yield name, lambda classifier=classifier: classifier.predict(images).cpu().numpy()
        else:
            yield name, lambda classifier=classifier: classifier.predict(batch)
    network = network.cuda()

    def eager() -> np.ndarray:
        with torch.inference_mode():
            return network(images).cpu().numpy()

    yield "tensor on the GPU, torch eager", eager


def _exported(branches: int, folder: Path) -> tuple[dict[str, Path], nn.Module]:
    import timm
    import torch

    import ccnn_zoo  # noqa: F401, its networks join timm's
    from ccnn_zoo import export

    torch.manual_seed(0)
    network = timm.create_model("ccnn_resnet18", branches=branches).eval()
    labels = [f"class {i}" for i in range(1000)]
    files = {precision: folder / f"resnet18-{branches}-{precision}.onnx" for precision in ("fp32", "fp16")}
    for precision, path in files.items():
        export.to_onnx(network, path, labels=labels, precision=precision)
    return files, network


if __name__ == "__main__":
    sys.exit(main())
