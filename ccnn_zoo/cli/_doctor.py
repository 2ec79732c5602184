"""``ccnn doctor``: where networks can run on this machine, where not, why, and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo._printable import printable
from ccnn_zoo.errors import DeviceError, MissingPackageError

from ._output import say, say_json, show

if TYPE_CHECKING:
    from ccnn_zoo.runtime.doctor import Report


def doctor(
    provider: Annotated[
        list[Path] | None, typer.Option(help="Library of a plugin execution provider of onnxruntime to try as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as one JSON object.")] = False,
) -> None:
    """Try every backend on a tiny network: which work, why the others do not, and the command that mends each.

    The exit code is 0 if at least the CPU works.

    Example:  ccnn doctor
    """
    try:
        from ccnn_zoo.runtime.doctor import examine
    except MissingPackageError:
        raise
    except ImportError as error:
        raise DeviceError(
            f"onnxruntime cannot be imported ({error}). pip install --force-reinstall "
            '"onnxruntime-gpu[cuda,cudnn]", or onnxruntime where there is no NVIDIA GPU.'
        ) from error
    report = examine(provider or ())
    if as_json:
        say_json(report.to_dict(), indent=2)
    else:
        _print(report)
    if not report.cpu_works:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    view = Table("backend", "from", "state", "why", box=SIMPLE_HEAD, pad_edge=False)
    for finding in report.findings:
        state = Text("works", "green") if finding.works else Text("missing", "red")
        backend, origin, reason = (Text(printable(t)) for t in (finding.backend, finding.origin, finding.reason))
        view.add_row(backend, origin, state, reason)
    show(view)
    for finding in report.findings:
        if finding.remedy:  # on a line of its own, unbroken, to be copied
            say(f"To mend {finding.backend}:  {finding.remedy}")
    say(f"device='auto' runs on {'the GPU' if report.cuda_works else 'the CPU'} here.")
    if len(report.wheels) > 1:
        say("Both wheels of onnxruntime are installed; the one that came last has replaced the other's files.")
    versions = Table(box=None, show_header=False, pad_edge=False)
    for name, version in {**report.versions, "wheels": ", ".join(report.wheels) or None}.items():
        versions.add_row(name, Text(printable(version or "none")))
    show(versions)
