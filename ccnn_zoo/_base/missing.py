"""What to install where code of ours imports a package that is not there: one place for all imports.

A room of :mod:`ccnn_zoo` that needs more than the base has the extra of its name. The finder is asked last, when no
other has found a module: imports that work cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ccnn_zoo.errors import MissingPackageError

# Modules that an extra or the base brings, where the package is called otherwise.
PACKAGES = {
    **{"google": "protobuf", "lazy_loader": "lazy-loader", "multipart": "python-multipart", "PIL": "pillow"},
    **{"prometheus_client": "prometheus-client", "sklearn": "scikit-learn", "yaml": "pyyaml"},
    **{
        name: name
        for name in (
            *("accelerate", "datasets", "fastapi", "filelock", "huggingface_hub", "matplotlib", "numpy", "onnx"),
            *("onnxruntime", "onnxscript", "openvino", "pyarrow", "pycocotools", "pydantic", "ray", "rich"),
            *("safetensors", "scipy", "starlette", "tensorboard", "timm", "torch", "torchvision", "typer", "uvicorn"),
            "wrapt",
        )
    },
}
# Rooms that work with the extra of their name, with the other extras that it brings.
ROOMS = {
    "cli": (),
    "detection": ("train", "uncertainty"),
    "export": ("runtime", "uncertainty"),
    "hub": ("export", "runtime", "train", "uncertainty"),
    "runtime": (),
    "serve": ("cli", "runtime"),
    "train": ("uncertainty",),
    "uncertainty": (),
    "web": ("export", "runtime", "uncertainty"),
}
OTHER_ROOMS = {"analysis": "train", "demo": "all"}
# Without these a room does all but one thing.
ELSEWHERE = {"datasets": "hfds", "openvino": "openvino", "pyarrow": "parquet", "tensorboard": "tensorboard"}

_IMPORT_SYSTEM = frozenset({"importlib", "_frozen_importlib", "_frozen_importlib_external"})


def missing_package(module: str, rooms: Iterable[str] = ()) -> MissingPackageError:
    """Return the error that says what to install.

    Args:
        module: what cannot be imported, one of :data:`PACKAGES`.
        rooms: parts of ``ccnn_zoo``: the one that imports it, the one that asked for that, and so on.
    """
    extra = ELSEWHERE.get(module)
    if extra is None:
        for room in (OTHER_ROOMS.get(each, each) for each in rooms):
            if (room == "all" or room in ROOMS) and (extra is None or room == "all" or extra in ROOMS[room]):
                extra = room
    wanted = f'"ccnn-zoo[{extra}]"' if extra else "ccnn-zoo"
    error = MissingPackageError(f"the package {PACKAGES[module]} is not installed: pip install {wanted}")
    error.name = module
    return error


class MissingPackages:
    """A finder that finds nothing: what code of ours imports in vain gets an error with the remedy.

    Imports of other packages, and questions such as ``importlib.util.find_spec``, are left to Python.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise MissingPackageError if code of ours imports ``name``, a package of the base or of an extra."""
        if name not in PACKAGES:
            return
        from inspect import currentframe
        from traceback import walk_stack

        machinery = True
        rooms = []
        for frame, _ in walk_stack(currentframe()):  # the innermost first
            module = str(frame.f_globals.get("__name__", ""))
            parts = module.split(".")
            if module == __name__:
                continue
            if machinery and parts[0] in _IMPORT_SYSTEM:
                if module == "importlib.util":
                    return
                continue
            if machinery and parts[0] != "ccnn_zoo":
                return
            machinery = False
            if parts[0] == "ccnn_zoo":
                rooms += parts[1:2]
        raise missing_package(name, rooms)
