"""Which version this is."""

from __future__ import annotations


def version() -> str:
    """Return the version of ccnn-zoo, or of ccnn-runtime, which has the same files."""
    return distribution()[1]


def distribution() -> tuple[str, str]:
    """Return the name and the version of what was installed."""
    from importlib import metadata  # it reads e-mail headers, and costs as much as all of `import ccnn_zoo`

    try:
        return "ccnn-zoo", metadata.version("ccnn-zoo")
    except metadata.PackageNotFoundError:
        return "ccnn-runtime", metadata.version("ccnn-runtime")
