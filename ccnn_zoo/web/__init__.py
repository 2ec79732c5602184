"""Pages in the browser: a static site whose visitors run networks themselves, and the page that ``ccnn serve`` shows.

>>> write_site({"digits": "digits.onnx"}, "site")  # HTML, scripts, networks and onnxruntime-web: any web server does

Importing this package imports neither torch nor onnx.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_onnxruntime_web": ["VERSION"],
        "_page": ["SERVICE_POLICY", "service_page", "service_part"],
        "_site": ["Site", "write_site"],
        "_space": ["MARK", "staged_space"],
    },
)
