"""Torch's exporter reads the sources of its 500 ONNX functions at every export, a quarter of a small export's time.

Where this is imported they are read once in a process. What the exporter does with them stays as it is.
"""

from __future__ import annotations

import contextlib
from functools import cache

with contextlib.suppress(ImportError, AttributeError):  # private names; without them exports are only slower
    from torch.onnx._internal.exporter import _registration

    _registration.onnxscript_apis.get_torchlib_ops = cache(_registration.onnxscript_apis.get_torchlib_ops)
