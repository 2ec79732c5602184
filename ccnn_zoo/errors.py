"""Exceptions of ccnn-zoo, one door for ``except``.

Each derives from :class:`CCNNError` and from the built-in exception that a caller would expect::

    CCNNError
    ├── ConfigurationError   (ValueError)         an argument outside its range
    │   └── MissingPackageError (ModuleNotFoundError) a package that an extra installs
    ├── CalibrationError     (TypeError)          a module that cannot be calibrated
    ├── NonFiniteLossError   (ArithmeticError)    training diverged
    ├── ExportError          (RuntimeError)       an exported graph failed its check
    ├── MetadataError        (ValueError)         an ONNX file without (valid) metadata
    ├── IntegrityError       (OSError)            a file differs from its checksum, or cannot be parsed
    ├── RepositoryError      (OSError)            a repository that is missing or cannot be written
    ├── ImageError           (ValueError)         an image that cannot be read
    └── DeviceError          (RuntimeError)       the asked device cannot run the model

and, outside of it, ``TrainingInterrupted`` (KeyboardInterrupt): a training stopped as it was asked to.
"""

from __future__ import annotations

from ._printable import printable


class CCNNError(Exception):
    """Base of all errors raised on purpose by ccnn-zoo.

    Its text can be printed whatever the names in it hold: one line, and an indented one for each further argument.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(printable, self.args))


class ConfigurationError(CCNNError, ValueError):
    """An argument is outside its range."""


class MissingPackageError(ConfigurationError, ModuleNotFoundError):
    """A package is not installed that this part of ccnn-zoo needs; names the extra that installs it."""


class CalibrationError(CCNNError, TypeError):
    """A module cannot be calibrated; names the module and why."""


class NonFiniteLossError(CCNNError, ArithmeticError):
    """The training loss became NaN or infinite."""


class ExportError(CCNNError, RuntimeError):
    """An exported graph failed its check; no file is left behind."""


class MetadataError(CCNNError, ValueError):
    """An ONNX file lacks the metadata that is needed to use it."""


class IntegrityError(CCNNError, OSError):
    """A file differs from its recorded checksum or cannot be parsed."""


class RepositoryError(CCNNError, OSError):
    """A model repository does not exist, or cannot be read or written."""


class ImageError(CCNNError, ValueError):
    """An image cannot be read or has an unsupported layout."""


class DeviceError(CCNNError, RuntimeError):
    """The requested device cannot run the model."""


class TrainingInterrupted(KeyboardInterrupt):
    """A training stopped on SIGINT or SIGTERM, its state saved.

    Not a :class:`CCNNError`: as Python's own, it passes ``except Exception``.

    Args:
        message: where it stopped, and how to go on.
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
