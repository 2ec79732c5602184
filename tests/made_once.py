"""What is dear to make, and that tests only read: made once a session, by the first of pytest's workers to need it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_FOLDER = "CCNN_TESTS_MADE_ONCE"  # of the controller, whose workers inherit it


def begin() -> None:
    """Make the session's folder, in pytest's own process."""
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="ccnn-tests-once-")


def end() -> None:
    """Remove it."""
    shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder ``name``, which ``make`` fills. It is shared: copy it before you change anything."""
    folder = Path(os.environ[_FOLDER], name)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_name(f"{name}.making")
            shutil.rmtree(making, ignore_errors=True)  # of one that failed
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder
