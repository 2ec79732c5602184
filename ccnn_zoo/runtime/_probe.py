"""A tiny network with a known answer, to see whether a backend works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccnn_zoo.errors import DeviceError

if TYPE_CHECKING:
    from ._backend import Backend

# Written by scripts/make_probe_network.py: a 3x3 convolution to two channels, the mean over the picture, no metadata.
# The kernels are 1/27 and -1/27 everywhere and the biases 0 and 0.5, so a picture of v alone gives v and 0.5 - v.
NETWORK = Path(__file__).with_name("probe.onnx")
SHAPE = (2, 3, 8, 8)
_VALUES = np.array([1.0, 2.0], np.float32)


def probe(backend: Backend) -> None:
    """Run the tiny network on a backend.

    Raises:
        CCNNError: the backend cannot run it.
        DeviceError: its output is wrong.
    """
    from ._backend import OpenOptions

    session = backend.open(NETWORK, OpenOptions(SHAPE))
    batch = np.broadcast_to(_VALUES[:, None, None, None], SHAPE).copy()
    found = np.asarray(session.run(batch)["logits"], np.float32)
    expected = np.stack([_VALUES, 0.5 - _VALUES], axis=1)
    # TensorFloat-32 and half precision keep ten bits of the mantissa.
    if found.shape != expected.shape or not np.allclose(found, expected, atol=0.01):
        raise DeviceError(f"{session.provider} computes {found.tolist()} where {expected.tolist()} is right")
