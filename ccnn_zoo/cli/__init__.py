"""The command line ``ccnn``.

Each command imports what it needs only when it runs: ``ccnn classify`` never touches torch.
"""

from __future__ import annotations

import sys

import typer

from ccnn_zoo.errors import CCNNError

from ._analyze import analyze
from ._classify import classify
from ._demo import demo
from ._doctor import doctor
from ._export import export
from ._networks import list_networks, train
from ._publish import download, publish
from ._serve import serve

app = typer.Typer(
    help="Calibrated CNNs: train with CSGD, fold, export to ONNX, publish, classify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (demo, train, export, publish, download, classify, serve, analyze, doctor):
    app.command()(command)
app.command("list")(list_networks)


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 1."""
    try:
        app()
    except CCNNError as error:
        sys.exit(f"error: {error}")
