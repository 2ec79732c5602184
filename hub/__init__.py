"""Model repositories: publish a network to the Hugging Face Hub or a local folder, find, download and verify one.

A repository holds ``config.json`` and ``model.safetensors`` (the trained network, as timm reads them),
``onnx/model.onnx`` (the folded one), ``README.md`` (the model card) with pictures, and ``manifest.json`` with the
SHA-256 of every file. Repositories on the Hub are named ``"org/name"``, those on disk ``"local:FOLDER"``.

>>> publish("digits/last.safetensors", "local:hub/digits")
>>> folder = download("local:hub/digits")

Downloading imports neither torch nor timm nor onnx.
"""

from __future__ import annotations

from ccnn_zoo.metadata import check_precision

from ._download import download
from ._manifest import FileSum, Manifest
from ._names import PRECISIONS
from ._plan import Change
from ._publish import Publication, publish
from ._search import FoundNetwork, search
from ._space import SpacePublication, publish_space

__all__ = [
    "PRECISIONS",
    "Change",
    "FileSum",
    "FoundNetwork",
    "Manifest",
    "Publication",
    "SpacePublication",
    "check_precision",
    "download",
    "publish",
    "publish_space",
    "search",
]
