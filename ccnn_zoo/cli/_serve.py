"""``ccnn serve``: a network over HTTP, on Ray Serve."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import MODEL_HELP, PRECISION, TOKEN
from ._output import say


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 takes requests from everywhere.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Processes that hold the network.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each; by default the cores are shared.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu; cuda takes one GPU a replica.")] = "auto",
    precision: Annotated[str, PRECISION] = "fp32",
    token: Annotated[bool, TOKEN] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures that a replica classifies at once.")] = 16,
    batch_wait: Annotated[float, typer.Option(help="Seconds that a picture waits for others.")] = 0.005,
    coverage: Annotated[
        float | None, typer.Option(help="Sets that hold the true class of this share, where a request asks for none.")
    ] = None,
    max_risk: Annotated[
        float | None, typer.Option(help="Decide only where at most this share is wrong; a request may ask for another.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest body of a request; larger ones get 413.")] = 10_000_000,
    max_pixels: Annotated[int, typer.Option(help="Most pixels of a picture; larger ones get 413.")] = 48_000_000,
    max_pending: Annotated[int, typer.Option(help="Requests held at once; further ones get 503.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds to receive a request, and again to answer it.")] = 30.0,
    header_timeout: Annotated[float, typer.Option(help="Seconds for a request's headers, then it is cut off.")] = 10.0,
    address: Annotated[str, typer.Option(help="local starts Ray here; auto joins this machine's cluster.")] = "local",
    name: Annotated[str, typer.Option(help="The Serve application's name, one a cluster.")] = "ccnn",
) -> None:
    """Classify pictures that come over HTTP, until SIGINT or SIGTERM; what was accepted by then is answered first.

    POST /classify takes a picture as it is or as a form's file; /docs describes the service, /openapi.json the same
    for programs; /healthz and /metrics are for machines. Needs the extra serve.

    Example:  ccnn serve local:ccnn-demo/hub/ccnn_resnet18_cifar --replicas 2

              curl --data-binary @cat.jpg -H "Content-Type: image/jpeg" localhost:8000/classify?top_k=3
    """
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve import serve as run

    options = ServeOptions(
        model,
        device=device,
        precision=precision,
        token=token,
        replicas=replicas,
        threads=threads,
        max_batch_size=batch_size,
        batch_wait_s=batch_wait,
        coverage=coverage,
        max_risk=max_risk,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_pending=max_pending,
        timeout_s=timeout,
        header_timeout_s=header_timeout,
        host=host,
        port=port,
        address=address,
        name=name,
    )
    run(options, ready=lambda url: say(f"serving {model} at {url}"))
