"""Names of repositories, and of the files in them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ccnn_zoo._base.named import PICKLES
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import FILES

LOCAL = "local:"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
NETWORK = FILES["fp32"]
CARD = "README.md"
MANIFEST = "manifest.json"
TAG = "ccnn-zoo"
CURVES = "pictures/errors.png"
HEAT_MAP = "pictures/calibration.png"
DOUBT = {"confidence": "pictures/confidence.png", "doubtful": "pictures/doubtful.png"}
"""Pictures of what the network does not know, by the names that the training gives them."""

PRECISIONS = FILES
"""Precision to the path of its ONNX file."""

REQUIRED = (CONFIG, WEIGHTS, NETWORK, CARD)
"""Files that every published repository has, besides its manifest."""

WANTED = (CONFIG, WEIGHTS, "onnx/*.onnx", CARD)
"""Patterns of the files that a download needs, besides the manifest."""


def is_wanted(path: str, patterns: tuple[str, ...] = WANTED) -> bool:
    """Whether a download needs the file of this path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def is_published(path: str) -> bool:
    """Whether publishing writes files of such a name, and so removes one that an earlier publication left."""
    return is_wanted(path) or path in (MANIFEST, CURVES, HEAT_MAP, *DOUBT.values())


def is_pickle(path: str) -> bool:
    """Whether the name says that the file is, or may hold, a pickle."""
    return PurePosixPath(path).suffix.lower() in PICKLES


def local_folder(repo_id: str) -> Path | None:
    """Return the folder of ``"local:FOLDER"``, or None for the id of a Hub repository.

    Raises:
        ConfigurationError: the name is neither of the two.
    """
    if not repo_id.startswith(LOCAL):
        if not _HUB_ID.fullmatch(repo_id):
            raise ConfigurationError(f"repo_id {repo_id!r} is neither 'org/name', for the Hub, nor 'local:FOLDER'")
        return None
    folder = repo_id.removeprefix(LOCAL)
    if not folder:
        raise ConfigurationError(f"repo_id {repo_id!r} names no folder; write 'local:FOLDER'")
    return Path(folder).expanduser()


def refuse_for_folders(repo_id: str, **arguments: object) -> None:
    """Refuse arguments that have no meaning for a repository on disk.

    Raises:
        ConfigurationError: one of them is given (neither None nor False); names it.
    """
    for name, value in arguments.items():
        if value is not None and value is not False:
            # The value may be a token: it is not shown.
            raise ConfigurationError(f"{name} is for Hub repositories, {repo_id!r} is a folder. Leave it out.")
