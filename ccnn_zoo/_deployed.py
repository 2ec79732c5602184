"""Networks that come with the package as weights, deployed once and kept beside what huggingface_hub keeps."""

from __future__ import annotations

import logging
from pathlib import Path

from ccnn_zoo._base.named import shipped_weights
from ccnn_zoo._base.version import version
from ccnn_zoo._files import sha256_of
from ccnn_zoo.errors import ConfigurationError, MissingPackageError, RepositoryError
from ccnn_zoo.metadata import FILES, check_precision

_logger = logging.getLogger("ccnn_zoo.runtime")


def deployed(name: str, precision: str) -> Path:
    """Return the ONNX file of shipped weights; it is exported when it is wanted for the first time.

    Args:
        name: as timm has it, e.g. ``ccnn_resnet18_cifar.cifar10``.
        precision: ``"fp32"`` or ``"fp16"``.

    Raises:
        ConfigurationError: int8 is wanted, which needs images, or torch, timm or onnx are not installed.
        RepositoryError: the cache cannot be written.
    """
    weights = shipped_weights(name)
    check_precision(precision)
    if precision == "int8":
        raise ConfigurationError(
            f"int8 needs images to measure ranges on: run `ccnn export {name} -p int8 --data DATA -o model.onnx` "
            "first, then name model.onnx"
        )
    file = Path(FILES[precision]).name
    path = _cache(f"{name}-{version()}-{sha256_of(weights)[:16]}") / file
    if path.is_file():
        return path
    try:
        from ccnn_zoo.export import to_onnx
    except MissingPackageError as error:
        raise ConfigurationError(
            f"{name} comes as trained weights, which are exported first, and {error}. Or run `ccnn export {name} -o "
            "model.onnx` where that is installed, and name model.onnx."
        ) from error
    from ccnn_zoo.checkpoint import load_checkpoint

    _logger.info("exporting %s to %s", name, path)
    to_onnx(load_checkpoint(weights)[0], path, precision=precision)
    return path


def _cache(name: str) -> Path:
    from huggingface_hub import cached_assets_path, constants

    try:
        return cached_assets_path("ccnn-zoo", "exported", name)
    except (OSError, ValueError) as error:  # ValueError: of files that are in the way
        why = getattr(error, "strerror", None) or "a file is in the way"
        raise RepositoryError(
            f"the cache {constants.HF_ASSETS_CACHE} cannot be written ({why}). Set HF_HOME to a folder that "
            "you may write to."
        ) from error
