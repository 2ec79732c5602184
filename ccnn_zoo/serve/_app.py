"""The Serve application: replicas that hold the network, and for Serve's own HTTP proxies an ingress before them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from ccnn_zoo._base.checks import check_integer
from ccnn_zoo._files import parsed_yaml
from ccnn_zoo.errors import ConfigurationError

from ._front import DEPLOYMENT, Front
from ._options import ServeOptions
from ._replica import Replica

_SERVES_OWN = ("host", "port", "address", "name")


def application(args: dict[str, Any]) -> Application:
    """Build the application for ``serve run``, ``serve deploy`` or KubeRay: ``ccnn_zoo.serve:application``.

    Serve's proxies on every machine take the requests. A replica with the network that dies loses none of them; an
    ingress that dies takes those with it that it holds. :func:`ccnn_zoo.serve.serve` has no such process.

    Args:
        args: fields of :class:`ServeOptions`, as they are or as text (``replicas=2`` on the command line); where to
            listen is Serve's own affair. ``ingresses`` is the number of ingress processes, 1 by default.

    Raises:
        ConfigurationError: an argument is unknown, missing or outside its range.
    """
    known = {field.name: field.type for field in fields(ServeOptions) if field.name not in _SERVES_OWN}
    known["ingresses"] = "int"
    unknown = sorted(args.keys() - known.keys())
    if unknown or "model" not in args:
        raise ConfigurationError(
            f"application takes model and optionally {', '.join(sorted(known.keys() - {'model'}))}; "
            + (f"{', '.join(unknown)} is none of them" if unknown else "model is missing")
        )
    values = {key: _parsed(key, value) if known[key] != "str" else value for key, value in args.items()}
    ingresses = values.pop("ingresses", 1)
    check_integer("ingresses", ingresses)
    options = ServeOptions(**values)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=ingresses,
        max_ongoing_requests=options.max_pending + 16,  # beyond max_pending the ingress itself refuses, and says why
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(replicas(options), options)


def _parsed(key: str, value: object) -> object:
    return parsed_yaml(value, f"{key}={value}") if isinstance(value, str) else value


def replicas(options: ServeOptions) -> Application:
    """Return the deployment that holds the network."""
    return serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.threads_each, "num_gpus": options.gpus_each},
        user_config={"max_batch_size": options.max_batch_size, "batch_wait_s": options.batch_wait_s},
        # One batch in work and one that gathers; what is more waits where any free replica can take it.
        max_ongoing_requests=2 * options.max_batch_size,
        graceful_shutdown_timeout_s=options.timeout_s,
        health_check_period_s=10,
        health_check_timeout_s=30,
    ).bind(options)


class Ingress:
    """A Serve deployment's class: :class:`Front` in a process of its own.

    Args:
        handle: of the replicas.
        options: the service's.
    """

    def __init__(self, handle: DeploymentHandle, options: ServeOptions) -> None:
        self._front = Front(handle, options, serve.get_replica_context().app_name)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._front.app()
