"""Past one machine: Triton model repositories, and classification on Ray.

>>> write_triton("ccnn_resnet18.onnx", "models")  # models/ccnn_resnet18/config.pbtxt, .../1/model.onnx, labels
>>> serve(ServeOptions("org/ccnn_resnet18", replicas=4))  # HTTP until SIGTERM or SIGINT
>>> for result in RayClassifier("org/ccnn_resnet18", processes=8).classify_stream(paths):  # on Ray Data
...     print(result.source, result.label)

Importing this package imports neither torch nor Ray; all but :func:`write_triton` needs the extra ``serve``
(``pip install "ccnn-zoo[serve]"``).
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_app": ["application"],
        "_dataset": ["RayClassifier"],
        "_options": ["ServeOptions"],
        "_server": ["serve"],
        "_triton": ["write_triton"],
        "_triton_options": ["TritonOptions"],
    },
)
