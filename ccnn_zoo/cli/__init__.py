"""The command line ``ccnn``.

Each command imports what it needs only when it runs: ``ccnn classify`` never touches torch, nor the other commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from ccnn_zoo.errors import CCNNError

# In the order of `ccnn --help`.
COMMANDS = {
    "demo": "_demo:demo",
    "train": "_networks:train",
    "export": "_export:export",
    "publish": "_publish:publish",
    "download": "_publish:download",
    "classify": "_classify:classify",
    "detect": "_detect:detect",
    "detect-demo": "_detect_demo:detect_demo",
    "serve": "_serve:serve",
    "analyze": "_analyze:analyze",
    "doctor": "_doctor:doctor",
    "list": "_networks:list_networks",
}


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 1."""
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        # Typer builds every command of an app, options and all: four times the cost of the one that runs.
        _app([named] if named in COMMANDS else COMMANDS)()
    except CCNNError as error:
        sys.exit(f"error: {error}")


def _app(commands: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        help="Calibrated CNNs: train with CSGD, fold, export to ONNX, publish, classify.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_nothing)  # without it an app of one command would take no command's name
    for name in commands:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f".{module}", __name__), function))
    return app


def _nothing() -> None:
    pass


def __getattr__(name: str) -> typer.Typer:
    if name == "app":
        return _app(COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
