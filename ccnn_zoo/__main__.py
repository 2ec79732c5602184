"""The command ``ccnn``, and ``python -m ccnn_zoo``."""

from __future__ import annotations

import sys

from ccnn_zoo.errors import MissingPackageError


def main() -> None:
    """Run the command line, or say in one line how to install it."""
    try:
        from ccnn_zoo.cli import main as run
    except MissingPackageError as error:
        sys.exit(f"error: {error}")
    run()


if __name__ == "__main__":
    main()
