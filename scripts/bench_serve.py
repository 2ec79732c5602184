"""Measure ``ccnn serve`` under load from another process, with and without replicas that are killed.

python scripts/bench_serve.py    writes docs/serving_load.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from urllib.request import urlopen

import psutil
from real_data import real_data

ROOT = Path(__file__).parent.parent
CLIENT = Path(__file__).with_name("serve_load.py")
PICTURES = real_data() / "imagenet-sample"
DOCUMENT = ROOT / "docs" / "serving_load.md"


@dataclass
class Case:
    """A network of the document, its pictures, and how many requests it is asked."""

    name: str
    network: Path
    pictures: Path
    requests: int


def sent(url: str, requests: int, connections: int, folder: Path) -> subprocess.Popen[str]:
    """Start a process that sends pictures, and go on."""
    command = [sys.executable, CLIENT, url, str(folder), f"--requests={requests}"]
    return subprocess.Popen([*command, f"--connections={connections}"], stdout=subprocess.PIPE, text=True)


def received(process: subprocess.Popen[str]) -> dict[str, object]:
    """Wait for such a process and return what it prints."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load ended with {process.returncode}")
    return json.loads(output)


@dataclass
class Service:
    """A running ``ccnn serve``."""

    process: subprocess.Popen[str]
    url: str

    def metric(self, name: str) -> float:
        """Return one of the service's figures."""
        with urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def replicas(self) -> list[psutil.Process]:
        """Return the processes that hold the network."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith("ray::ServeReplica")]


@contextmanager
def served(network: Path, arguments: argparse.Namespace, *further: str) -> Iterator[Service]:
    """Run ``ccnn serve`` on a free port, with further options, until the block ends."""
    ccnn = Path(sys.executable).with_name("ccnn")
    options = [f"--replicas={arguments.replicas}", f"--threads={arguments.threads}", "--port=0", "--device=cpu"]
    options += further
    with subprocess.Popen([ccnn, "serve", network, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("serving ")), None)
            if line is None:
                raise SystemExit("the service did not start")
            yield Service(process, line.rpartition(" at ")[2].strip())
        finally:
            process.terminate()


def alone(case: Case, arguments: argparse.Namespace) -> tuple[float, dict[str, str]]:
    """Return the pictures per second of as many processes with the runtime alone, and its label of each picture."""
    with ProcessPoolExecutor(arguments.replicas, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(rate, case, arguments.threads) for _ in range(arguments.replicas)]
        results = [job.result() for job in jobs]
    return sum(speed for speed, _ in results), results[0][1]


def rate(case: Case, threads: int) -> tuple[float, dict[str, str]]:
    """Return one process's pictures per second, fastest of three rounds, and the label of each picture."""
    from ccnn_zoo import runtime

    classifier = runtime.load(case.network, device="cpu", threads=threads, batch_size=16)
    paths = sorted(case.pictures.iterdir())
    labels = {Path(result.source).name: result.label for result in classifier.classify_stream(paths, 1)}
    speeds = []
    for _ in range(3):
        started = time.perf_counter()
        classified = sum(1 for _ in classifier.classify_stream(paths, 1))
        speeds.append(classified / (time.perf_counter() - started))
    return max(speeds), labels


def measured(
    service: Service, case: Case, requests: int, connections: int, labels: dict[str, str], *, kill: bool = False
) -> Row:
    """Send pictures, killing one replica after the other meanwhile if so asked; return a row of the table."""
    before = {name: service.metric(name) for name in METRICS}
    client = sent(service.url, requests, connections, case.pictures)
    kills = 0
    while kill and client.poll() is None:
        replicas = service.replicas()
        if len(replicas) > 1 and service.metric("ccnn_requests_pending"):
            replicas[0].kill()
            kills += 1
            time.sleep(5)
        time.sleep(0.1)
    result = received(client)
    after = {name: service.metric(name) - before[name] for name in METRICS}
    wrong = sum(
        count
        for name, answers in result["answers"].items()
        for answer, count in answers.items()
        if not answer or json.loads(answer).get("predictions", [{"label": None}])[0]["label"] != labels[name]
    )
    batch = after["ccnn_batch_size_sum"] / max(after["ccnn_batch_size_count"], 1)
    return Row(connections, kills, result, batch, int(after["ccnn_retries_total"]), wrong)


@dataclass
class Row:
    """What one load measured."""

    connections: int
    kills: int
    result: dict[str, float]
    batch: float
    retries: int
    wrong: int

    def text(self, reference: float) -> str:
        """Return the row in Markdown."""
        rate, p50, p99 = (self.result[key] for key in ("requests_per_second", "p50", "p99"))
        cells = [str(self.connections), str(self.kills), f"{rate:.1f}", f"{rate / reference:.2f}", f"{self.batch:.1f}"]
        cells += [f"{1000 * p50:.0f}", f"{1000 * p99:.0f}", str(self.retries), str(self.wrong)]
        return f"| {' | '.join(cells)} |"


def cases(folder: Path) -> Iterator[Case]:
    """Export the networks of the document one after the other."""
    import timm
    import torch

    import ccnn_zoo  # noqa: F401, registers the networks
    from ccnn_zoo.export import to_onnx

    torch.manual_seed(0)
    small, large = folder / "small.onnx", folder / "large.onnx"
    to_onnx(timm.create_model("ccnn_resnet18_cifar.cifar10", pretrained=True), small)
    yield Case("`ccnn_resnet18_cifar.cifar10`, 32 x 32, trained", small, PICTURES, 1000)
    labels = [f"class {number}" for number in range(1000)]
    to_onnx(timm.create_model("ccnn_resnet18", branches=2), large, labels=labels)
    some = folder / "pictures"
    some.mkdir()
    for picture in sorted(PICTURES.iterdir())[:25]:
        (some / picture.name).symlink_to(picture)
    yield Case("`ccnn_resnet18`, K=2, 224 x 224, random weights", large, some, 60)


def bench(arguments: argparse.Namespace) -> None:
    """Measure both networks and write the document."""
    from documents import write

    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            reference, labels = alone(case, arguments)
            with served(case.network, arguments) as service:
                measured(service, case, 50, 4, labels)  # first requests open connections between processes
                rows = [measured(service, case, case.requests, connections, labels) for connections in (1, 8, 32)]
                rows.append(measured(service, case, 2 * case.requests, 32, labels, kill=True))
            reference = max(reference, alone(case, arguments)[0])
            table = [row.text(reference) for row in rows]
            sections += [
                f"## {case.name}",
                "",
                f"{len(list(case.pictures.iterdir()))} pictures. The runtime alone: {reference:.1f} pictures/s.",
                "",
                *HEAD,
                *table,
                "",
            ]
            # After each network: the large one takes its time.
            write(arguments.output, [*introduction(arguments), *sections])


def introduction(arguments: argparse.Namespace) -> list[str]:
    """Return what was measured, and on what."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{package} {version(package)}" for package in ("ray", "onnxruntime-gpu", "uvicorn"))
    return [
        "# ccnn serve under load",
        "",
        f"Written by `scripts/bench_serve.py`: {names[0]}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, {versions}; load average {os.getloadavg()[2]:.1f} over the last 15 minutes, the "
        f"client's own processes included. `ccnn serve --replicas {arguments.replicas} --threads {arguments.threads}`, "
        f"Ray, the service and the client share the machine. Pictures are JPEGs of "
        "ImageNet's size, sent in turn; each connection sends its next one when it has its answer. Seed 0.",
        "",
        "`ratio` is to the runtime alone on the same pictures, in as many processes with as many threads, which needs "
        "neither HTTP nor a client: its fastest rounds of three before and three after. `killed` are replicas ended by "
        "SIGKILL during the load, one every five seconds as long as another one runs; `sent again` are requests that "
        "died with one and that the service gave to another. `failed` are answers that were missing, no 200, or not "
        "the label that the runtime gives; the client repeats nothing.",
        "",
    ]


HEAD = [
    "| connections | killed | requests/s | ratio | mean batch | p50 ms | p99 ms | sent again | failed |",
    "|---|---|---|---|---|---|---|---|---|",
]
METRICS = ("ccnn_batch_size_sum", "ccnn_batch_size_count", "ccnn_retries_total")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    bench(parser.parse_args())


if __name__ == "__main__":
    main()
