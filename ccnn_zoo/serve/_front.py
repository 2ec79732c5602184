"""HTTP in front of the replicas: what is accepted, what is refused, and that an accepted request is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ccnn_zoo.errors import ConfigurationError

from ._openapi import PAGE_HEADERS, document, page
from ._options import ServeOptions
from ._page import PARTS, page_of, part_of, wants_page
from ._replica import OK, Reply
from ._schema import Answer, Query

ATTEMPTS = 3
"""Replicas that one picture may be sent to. A picture whose decoding kills them stops there."""

# A replica that dies takes its requests with it: Serve sends those again that it had not accepted, and raises one of
# these for those that it had. Classifying changes nothing, so they are sent again here.
REPLICA_DIED = (RayActorError, ObjectLostError, WorkerCrashedError)

DEPLOYMENT = "Replica"
"""Name of the deployment that holds the network."""

_RAW = ("image/", "application/octet-stream")
_HEALTH_TIMEOUT_S = 5.0
_logger = logging.getLogger("ccnn_zoo.serve")


@dataclass
class _Metrics:
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = Counter("ccnn_requests", "Requests by status.", ["status"], registry=self.registry)
        self.seconds = Histogram("ccnn_request_seconds", "From the first byte to the answer.", registry=self.registry)
        self.pending = Gauge("ccnn_requests_pending", "Requests that are held now.", registry=self.registry)
        self.retries = Counter("ccnn_retries", "Requests sent again: a replica died.", registry=self.registry)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128]
        self.decisions = Counter(
            "ccnn_decisions", "Where max_risk was asked for: decided or abstained.", ["outcome"], registry=self.registry
        )
        self.strange = Counter("ccnn_out_of_distribution", "Pictures unlike the known ones.", registry=self.registry)
        self.batches = Histogram(
            "ccnn_batch_size", "Pictures classified together.", registry=self.registry, buckets=sizes
        )
        for outcome in ("decided", "abstained"):
            self.decisions.labels(outcome)  # both are there from the first

    def count(self, reply: Reply, query: Query) -> None:
        """Count what became of a picture that was classified."""
        if reply.batch:
            self.batches.observe(reply.batch)
        if query.max_risk is not None:
            self.decisions.labels("decided" if reply.found.abstained is None else "abstained").inc()
        if reply.found.ood is not None and reply.found.ood.unlike:
            self.strange.inc()


class Front:
    """``POST /classify``, ``GET /``, ``/healthz`` and ``/metrics``; ``/openapi.json`` and ``/docs`` describe them.

    Args:
        handle: of the replicas' deployment.
        options: the service's.
        name: the Serve application's.
    """

    def __init__(self, handle: DeploymentHandle, options: ServeOptions, name: str) -> None:
        self._handle = handle
        self._name = name
        self._options = options
        self._metrics = _Metrics()
        self._pending = 0
        self._about: dict[str, object] | None = None

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/", self.about),
                Route(PARTS, part_of),
                Route("/classify", self.classify, methods=["POST"]),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.described),
                Route("/docs", self.docs),
            ],
            exception_handlers={HTTPException: _refused, Exception: _failed},
        )

    async def about(self, request: Request) -> Response:
        """Say which network answers, and to what; a browser gets a page to try it."""
        if wants_page(request):
            return page_of(request)
        if self._about is None:
            architecture, labels = await self._answered(self._handle.labels)
            self._about = {"model": architecture, "labels": labels, "classify": "POST /classify?top_k=5"}
        return JSONResponse(self._about, headers={"Vary": "Accept"})

    async def health(self, request: Request) -> Response:
        """Say whether a replica runs that passed its own check."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                status = await asyncio.to_thread(serve.status)
        except TimeoutError:
            return JSONResponse({"status": "Serve's controller does not answer"}, 503)
        app = status.applications.get(self._name)
        states = app.deployments[DEPLOYMENT].replica_states if app and DEPLOYMENT in app.deployments else {}
        running = states.get("RUNNING", 0)
        body = {"status": "ok" if running else "no replica runs", "replicas": running}
        return JSONResponse(body, OK if running else 503)

    async def metrics(self, request: Request) -> Response:
        """Give Prometheus what it asks for."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def described(self, request: Request) -> Response:
        """Describe the service to programs."""
        return JSONResponse(document(request.scope.get("root_path", "")))

    async def docs(self, request: Request) -> Response:
        """Describe the service to people, by a page that loads nothing."""
        return HTMLResponse(page(document()), headers=PAGE_HEADERS)

    async def classify(self, request: Request) -> Response:
        """Classify the picture that the body holds, as it is or as a form's one file."""
        started = time.perf_counter()
        status = 500
        self._pending += 1
        try:
            response = await self._classified(request)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # nobody reads it; a name for the metrics
            return Response(status_code=status)
        finally:
            self._pending -= 1
            self._metrics.pending.set(self._pending)
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.seconds.observe(time.perf_counter() - started)

    async def _classified(self, request: Request) -> Response:
        if self._pending > self._options.max_pending:
            raise HTTPException(
                503, f"{self._options.max_pending} requests are held already, try again later", {"Retry-After": "1"}
            )
        self._metrics.pending.set(self._pending)
        query = self._query(request)
        try:
            async with asyncio.timeout(self._options.timeout_s):
                picture = await self._picture(request)
        except TimeoutError as error:
            late = f"the body did not arrive within {self._options.timeout_s:g} s"
            raise HTTPException(408, late, {"Connection": "close"}) from error
        reply = await self._answered(self._handle.classify, picture, query)
        if reply.status != OK:
            raise HTTPException(reply.status, reply.error)
        self._metrics.count(reply, query)
        return Response(Answer.of(reply.found).model_dump_json(), media_type="application/json")

    def _query(self, request: Request) -> Query:
        try:
            return Query.read({**self._options.promises, **request.query_params})
        except ConfigurationError as error:
            raise HTTPException(400, str(error)) from error

    async def _answered(self, method: DeploymentHandle, *arguments: object) -> Any:
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await self._tried(method, *arguments)
        except TimeoutError as error:
            raise HTTPException(504, f"no replica answered within {self._options.timeout_s:g} s") from error

    async def _tried(self, method: DeploymentHandle, *arguments: object) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await method.remote(*arguments)
            except REPLICA_DIED as error:
                _logger.warning("a replica died with a request, attempt %d: %s", attempt, type(error).__name__)
                self._metrics.retries.inc()
        raise HTTPException(503, f"{ATTEMPTS} replicas died while they held this request", {"Retry-After": "5"})

    async def _picture(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", _RAW[1]).lower()
        multipart = kind.startswith("multipart/form-data")
        if not multipart and not kind.startswith(_RAW):
            raise HTTPException(
                415,
                f"Content-Type {kind} is not supported. Send the picture as image/jpeg, image/png or "
                "application/octet-stream, or as a form's file in multipart/form-data.",
            )
        body = await _body(request, self._options.max_bytes)
        picture = await _form_file(request, body) if multipart else body
        if not picture:
            raise HTTPException(400, "the body is empty. Send the bytes of one picture.")
        return picture


async def _body(request: Request, limit: int) -> bytes:
    """Read a body, but never more of it than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    too_large = f"the body is larger than {limit} bytes. Send a smaller picture."
    if declared.isdecimal() and int(declared) > limit:
        raise HTTPException(413, too_large, {"Connection": "close"})
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, too_large, {"Connection": "close"})
    return bytes(body)


async def _form_file(request: Request, body: bytes) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        yield body
        yield b""

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError) as error:
        reason = getattr(error, "message", None) or repr(error)
        raise HTTPException(400, f"the form cannot be read: {reason}. Send one file in it.") from error
    try:
        for _, value in form.multi_items():
            if not isinstance(value, str):
                return await value.read()
    finally:
        await form.close()
    raise HTTPException(400, "the form holds no file. Send the picture as a file, e.g. curl -F file=@cat.jpg.")


async def _refused(request: Request, error: HTTPException) -> Response:
    where = {404: "there is nothing here", 405: f"{request.method} is not taken here"}
    reason = (
        f"{where[error.status_code]}. Pictures go to POST /classify." if error.status_code in where else error.detail
    )
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed on this request; its log says why"}, 500, {"Connection": "close"})
