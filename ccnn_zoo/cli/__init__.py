"""The command line ``ccnn``.

Each command imports what it needs only when it runs: ``ccnn classify`` never touches torch, nor the other commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from ccnn_zoo._printable import printable
from ccnn_zoo.errors import CCNNError

from . import _output

# In the order of `ccnn --help`.
COMMANDS = {
    "demo": "_demo:demo",
    "train": "_networks:train",
    "ensemble": "_ensemble:ensemble",
    "export": "_export:export",
    "calibrate-confidence": "_confidence:calibrate_confidence",
    "publish": "_publish:publish",
    "download": "_publish:download",
    "classify": "_classify:classify",
    "detect": "_detect:detect",
    "serve": "_serve:serve",
    "web": "_web:web",
    "analyze": "_analyze:analyze",
    "doctor": "_doctor:doctor",
    "list": "_networks:list_networks",
}
_USAGE_ERROR = typer.BadParameter.__base__  # click's, of which typer brings its own copy since 0.20


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 1."""
    _output.prepare()
    arguments = sys.argv[1:] or ["--help"]
    # Typer builds every command of an app, options and all: four times the cost of the one that runs.
    app = _app([arguments[0]] if arguments[0] in COMMANDS else COMMANDS)
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except _output.OutputError as error:
        sys.exit(_output.abandon_stdout(error.__cause__))
    except _USAGE_ERROR as error:
        error.message = printable(error.message)
        error.show()
        sys.exit(error.exit_code)
    except CCNNError as error:
        sys.exit(f"error: {error}")


def _app(commands: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        help="Calibrated CNNs: train with CSGD, fold, export to ONNX, publish, classify.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_before)  # without it an app of one command would take no command's name
    for name in commands:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f".{module}", __name__), function))
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from ccnn_zoo._base.version import distribution

        _output.say(" ".join(distribution()))
        raise typer.Exit


def _before(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def __getattr__(name: str) -> typer.Typer:
    if name == "app":
        return _app(COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
