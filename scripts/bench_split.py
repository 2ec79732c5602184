"""Write into docs/decisions.md what a network branch by branch costs to export: by rewriting the graph, and by `split`.

    python scripts/bench_split.py

Processor time of one run each, in one process, one thread.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx
import timm
import torch
from documents import write_between

import ccnn_zoo
from ccnn_zoo import export
from ccnn_zoo.export._branch_chains import branches_apart
from ccnn_zoo.export._convert import convert

PAGE = Path(__file__).resolve().parents[1] / "docs" / "decisions.md"
NETWORKS = (("ccnn_resnet18", 2), ("ccnn_resnet18_cifar", 4), ("ccnn_resnet18", 8))
OPSET = 18

Made = TypeVar("Made")


def main() -> None:
    torch.set_num_threads(1)
    measured(*NETWORKS[1])  # torch's exporter reads its sources at the first export
    rows = [measured(*network) for network in NETWORKS]
    head = (
        "network",
        "K",
        "the groups, s",
        "rewritten, s",
        "`split` and its export, s",
        "nodes: rewritten, by `split`",
    )
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    machine = (
        f"Processor time of one run each by `scripts/bench_split.py`, one thread of {platform.machine()}; python "
        f"{platform.python_version()}, torch {torch.__version__}, onnx {onnx.__version__}, timm {timm.__version__}."
    )
    write_between(PAGE, "split", [*lines, "", machine])


def measured(name: str, branches: int) -> tuple[str, ...]:
    """Return a row of the table."""
    torch.manual_seed(0)
    model = timm.create_model(name, branches=branches).eval()
    metadata = export.metadata_of(model)
    grouped, whole = timed(lambda: convert(ccnn_zoo.fold(model), metadata, OPSET))
    rewritten, apart = timed(lambda: branches_apart(whole, branches))
    splitting, (parts, chains) = timed(lambda: exported_parts(model, metadata))
    del parts
    nodes = f"{len(apart.graph.node)}, {len(chains.graph.node)}"
    return f"`{name}`", str(branches), f"{grouped:.1f}", f"{rewritten:.2f}", f"{splitting:.1f}", nodes


def exported_parts(model: torch.nn.Module, metadata: ccnn_zoo.metadata.ModelMetadata) -> tuple[object, onnx.ModelProto]:
    parts = ccnn_zoo.split(model).eval()
    return parts, convert(parts, metadata, OPSET)


def timed(call: Callable[[], Made]) -> tuple[float, Made]:
    before = time.process_time()
    made = call()
    return time.process_time() - before, made


if __name__ == "__main__":
    main()
