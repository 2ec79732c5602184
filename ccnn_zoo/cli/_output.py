"""All that the command line prints: names that harm no terminal, streams that may be closed, narrow or no UTF-8."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from ccnn_zoo._printable import printable

if TYPE_CHECKING:
    from rich.table import Table

_ANY_WIDTH = 100_000


def prepare() -> None:
    """Make the standard streams fit for any text, and what libraries say through them harmless."""
    _occupy_closed_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, libraries write to it until the process ends
    warnings.formatwarning = _warning
    _escape_logs()


def say(text: object = "", *, err: bool = False) -> None:
    """Print one line, with all that cannot be seen escaped.

    Raises:
        OutputError: stdout is closed, full or read by nobody any more. What cannot be said on stderr is not said.
    """
    line = f"{printable(text)}\n"
    if not err:
        _write(line, sys.stdout)
        return
    with suppress(OutputError):
        _write(line, sys.stderr)


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII, which holds every name exactly and harmlessly.

    Raises:
        OutputError: see :func:`say`.
    """
    import json

    _write(f"{json.dumps(value, indent=indent, default=list)}\n", sys.stdout)


def show(table: Table) -> None:
    """Print a table, nothing of it cut off, however narrow the terminal.

    Cells hold :class:`rich.text.Text` of :func:`printable` text.

    Raises:
        OutputError: see :func:`say`.
    """
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if terminal else _ANY_WIDTH)
    whole = console.measure(table, options=console.options.update(width=_ANY_WIDTH))
    if console.width < whole.minimum:
        console.width = whole.maximum  # the terminal breaks the lines by itself
    for column in table.columns:
        column.overflow = "fold"
    with console.capture() as captured:
        console.print(table)
    _write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), sys.stdout)


def abandon_stdout(error: OSError) -> int:
    """Say why stdout could not be written, and return the exit code; what is left in its buffer is dropped.

    A reader that has seen enough, as ``head``, is no error: the code is then what a shell reports of SIGPIPE.
    """
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 128 + 13
    say(f"error: cannot write to standard output: {error.strerror or error}. Redirect it to a file.", err=True)
    return 1


class OutputError(Exception):
    """Stdout could not be written; the cause says why."""


def _write(text: str, stream: TextIO | None) -> None:
    try:
        if stream is None:
            raise OSError(errno.EBADF, "it is closed")
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise OutputError from error


def _occupy_closed_descriptors() -> None:
    """Let no file that is opened later become stdin, stdout or stderr, where others would write into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _warning(message: Warning | str, *where: object, **line: object) -> str:
    """All lines but the first are indented, so that none passes for a message of its own."""
    return "\n  ".join(printable(line.strip()) for line in f"warning: {message}".splitlines()) + "\n"


def _escape_logs() -> None:
    """Where nobody has set up logging, warnings go to stderr as they are."""

    class Escaping(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
            return printable(super().formatMessage(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Escaping())
