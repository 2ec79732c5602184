"""``ccnn demo``: the main job on real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._output import say


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for networks, hub and picture.")] = Path(
        "ccnn-demo"
    ),
    device: Annotated[str, typer.Option(help="Where the ONNX network runs: auto, cuda or cpu.")] = "auto",
) -> None:
    """Train on real digits, fold, export, publish, download and classify; a second run takes seconds.

    Example:  ccnn demo --output ccnn-demo
    """
    from ccnn_zoo import demo as job

    job.run(output, device=device, say=say)
