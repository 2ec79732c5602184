"""Starting Ray, here or on a cluster that runs already."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from ccnn_zoo.errors import DeviceError, RepositoryError

_logger = logging.getLogger("ccnn_zoo.serve")

LOCAL = "local"
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Of a local Ray; pictures that wait beyond that go to the disk."""


def require(*modules: str, address: str) -> None:
    """Import what the extra ``serve`` installs, Ray with settings of ours.

    Args:
        modules: what is needed.
        address: where Ray will run, as of :func:`running`.

    Raises:
        MissingPackageError: one is not installed.
    """
    if address == LOCAL:
        _keep_to_this_machine()
    for name in modules:
        import_module(name)


@contextmanager
def running(address: str, cpus: int, gpus: float = 0) -> Iterator[bool]:
    """Connect to a Ray cluster, or start one on this machine that ends with this block.

    Args:
        address: ``"local"`` starts one; ``"auto"`` or ``"ray://HOST:PORT"`` joins one. Where this process is connected
            already, that connection is used, and left open.
        cpus: processors that the processes of this block take; all that a local Ray hands out.
        gpus: GPUs, likewise.

    Yields:
        whether the cluster was started for this block alone.

    Raises:
        RepositoryError: there is no cluster at the address.
        DeviceError: Ray does not start here.
    """
    if address == LOCAL:
        _keep_to_this_machine()
    import ray

    if ray.is_initialized():
        yield False
        return
    if address == LOCAL:
        _keep_token_private()
    # Ray counts its users by sending reports home; a service does nothing that nobody asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it tells that its bars are off
    local = {
        "num_cpus": cpus + 1,  # one for Ray Data's own small tasks
        "num_gpus": gpus or None,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    options = local if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except ConnectionError as error:
        raise RepositoryError(
            f"no Ray cluster at {address!r}: {error}. Start one, or leave the address out."
        ) from error
    except Exception as error:  # a plain one, where Ray's processes do not start in time
        raise DeviceError(f"Ray does not start: {error} Try again when the machine is less busy.") from error
    try:
        if address != LOCAL:
            _say_if_short({"CPU": cpus, "GPU": gpus})
        yield address == LOCAL
    finally:
        ray.shutdown()


def _keep_to_this_machine() -> None:
    """Let a Ray that is started here listen on the loopback interface alone.

    By Ray's own switch for systems where it shall form no clusters. Ray reads it when it is imported, so that a program
    which has imported Ray before sets it by itself.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _keep_token_private() -> None:
    """Make the token with which one runs code in a Ray of this user readable for this user alone.

    Ray makes the file where there is none, readable for everybody.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray will say what is wrong with it
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            path.chmod(0o600)
            return
        with open(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))


def _say_if_short(needed: dict[str, float]) -> None:
    """Say what a busy or small cluster lacks: Ray waits for it in silence, a growing cluster may get it."""
    import ray

    free = ray.available_resources()
    for name, amount in needed.items():
        if free.get(name, 0) < amount:
            _logger.warning(
                "the cluster has %g %s free and %g are needed: waiting until they are.", free.get(name, 0), name, amount
            )


def absolute(model: str) -> str:
    """Return a model's name as processes in other folders find it."""
    prefix = "local:" if model.startswith("local:") else ""
    path = Path(model.removeprefix(prefix)).expanduser()
    return f"{prefix}{path.absolute()}" if path.exists() else model
