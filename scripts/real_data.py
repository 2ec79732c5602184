"""Where the scripts find real pictures."""

from __future__ import annotations

import os
from pathlib import Path


def real_data() -> Path:
    """Return the folder that CCNN_TEST_DATA names (CONTRIBUTING.md); one that does not exist where it names none."""
    return Path(os.environ.get("CCNN_TEST_DATA") or "CCNN_TEST_DATA-is-not-set")
