"""Which version this is."""

from __future__ import annotations


def version() -> str:
    """Return the version of ccnn-zoo, or of ccnn-runtime, which has the same files."""
    from importlib import metadata  # it reads e-mail headers, and costs as much as all of `import ccnn_zoo`

    try:
        return metadata.version("ccnn-zoo")
    except metadata.PackageNotFoundError:
        return metadata.version("ccnn-runtime")
