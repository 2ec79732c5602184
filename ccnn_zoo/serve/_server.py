"""``ccnn serve``: HTTP in this process, the network in Ray's."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ccnn_zoo import runtime
from ccnn_zoo.errors import ConfigurationError, DeviceError

from . import _ray
from ._options import ServeOptions

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(options: ServeOptions, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve a network over HTTP until SIGINT or SIGTERM; the requests that were accepted by then are answered first.

    Args:
        options: what to serve, and how.
        ready: is called with the service's address when it answers.

    Raises:
        ConfigurationError: the extra ``serve`` is not installed, the port is taken, or the name.
        RepositoryError: there is no such network, or no Ray cluster at the address.
        DeviceError: the replicas do not start; says why.
    """
    _ray.require("ray.serve", "uvicorn", "multipart", address=options.address)
    options = _resolved(options)
    with _bound(options.host, options.port) as listener:
        cpus, gpus = options.replicas * options.threads_each, options.replicas * options.gpus_each
        with _ray.running(options.address, cpus, gpus) as alone, _application(options, alone) as handle:
            _listen(listener, handle, options, ready)


def _resolved(options: ServeOptions) -> ServeOptions:
    """Refuse here what every replica would refuse, and name the file so that they find it."""
    # The process in front may have no GPU.
    device = "cpu" if options.gpus_each else options.device
    network = runtime.load(options.model, device=device, precision=options.precision, token=options.token)
    network.classify((), **options.promises)  # refuses what was not fitted for it
    return replace(options, model=_ray.absolute(options.model))


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, TypeError, ValueError) as error:  # the latter two of what can be no name of a machine
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"cannot listen on {host}, port {port}: {reason}. Choose another; port 0 takes a free one."
            ) from error
        yield listener


@contextmanager
def _application(options: ServeOptions, alone: bool) -> Iterator[object]:
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    from ._app import replicas

    ray_serve.start(proxy_location="Disabled")
    if options.name in ray_serve.status().applications:
        raise ConfigurationError(f"an application {options.name!r} runs on this cluster. Choose another name.")
    try:
        try:
            handle = ray_serve.run(replicas(options), name=options.name, route_prefix=None)
        except (RuntimeError, RayError) as error:
            raise DeviceError(f"the replicas do not start: {error}") from error
        yield handle
    finally:
        if alone:
            ray_serve.shutdown()
        else:
            ray_serve.delete(options.name)


def _listen(
    listener: socket.socket, handle: object, options: ServeOptions, ready: Callable[[str], None] | None
) -> None:
    import uvicorn

    from ._connections import punctual
    from ._front import Front

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and ready is not None:
                host, port = listener.getsockname()[:2]
                ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    config = uvicorn.Config(
        Front(handle, options, options.name).app(),
        http=punctual(options.header_timeout_s),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(2 * options.timeout_s) + 1,
    )
    with _quiet_signals():
        Server(config).run(sockets=[listener])


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let the server's own handlers end it, and nothing else: it raises a signal that it caught again when it ends."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
