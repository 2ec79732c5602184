"""Pictures: reading them, and finding them in folders; numpy and Pillow, neither torch nor onnxruntime.

>>> read("cat.jpg").size  # upright, RGB, 8 bits, whatever the file holds
"""

from __future__ import annotations

from ._folders import LeftOut, folders_in, pictures_in
from ._reader import (
    FORMATS,
    SUFFIXES,
    ImageInput,
    check,
    format_table,
    identified,
    iterate,
    look,
    name_of,
    read,
    upright_size,
)

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ImageInput",
    "LeftOut",
    "check",
    "folders_in",
    "format_table",
    "identified",
    "iterate",
    "look",
    "name_of",
    "pictures_in",
    "read",
    "upright_size",
]
