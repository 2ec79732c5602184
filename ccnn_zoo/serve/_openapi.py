"""The service's own description: OpenAPI 3.1 made from the typed schema, and a page made from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ccnn_zoo._base.version import version

from ._schema import About, Answer, Health, Query, Refusal

PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Frame-Options": "DENY"}
"""The page loads nothing and runs nothing."""

_REF = "#/components/schemas/"
_REFUSALS = {
    "400": "The picture is damaged, the form holds no file or several, or a parameter is refused.",
    "408": "The body took too long.",
    "413": "Too many bytes or pixels.",
    "415": "No picture of a known format.",
    "500": "The network failed on this picture.",
    "503": "Too many requests are held already, or the replicas died; Retry-After says when to try again.",
    "504": "No replica answered in time.",
}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #999;padding:.3em .6em;text-align:left;"
    "vertical-align:top}code{font-size:.95em}"
)


def document(root: str = "") -> dict[str, Any]:
    """Return the description, OpenAPI 3.1.

    Args:
        root: where the service lies, as a proxy before it says; "" at the top.
    """
    models: tuple[type[BaseModel], ...] = (About, Answer, Health, Refusal)
    _, schemas = models_json_schema([(model, "serialization") for model in models], ref_template=_REF + "{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ccnn serve",
            "version": version(),
            "description": "Classifies pictures, and says what the network does not know. Every answer but the metrics "
            "is JSON. Fields are added to it, and none is renamed or removed, within one version of this interface.",
        },
        "servers": [{"url": root or "/"}],
        "paths": {
            "/classify": {"post": _classify()},
            "/": {"get": _read("about", "Say which network answers.", About, "408", "503", "504")},
            "/healthz": {"get": _health()},
            "/metrics": {"get": _metrics()},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _classify() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": binary}, "required": ["file"]}
    kinds = {"image/*": {}, "application/octet-stream": {}, "multipart/form-data": {"schema": form}}
    operation = _read("classify", "Classify one picture.", Answer, *_REFUSALS)
    fields = Query.model_json_schema()["properties"]
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field["description"],
            "schema": {key: value for key, value in field.items() if key not in ("description", "title")},
        }
        for name, field in fields.items()
    ]
    body = {"required": True, "description": "The picture as it is, or a form's one file.", "content": kinds}
    return {**operation, "parameters": parameters, "requestBody": body}


def _read(name: str, summary: str, answer: type[BaseModel], *refusals: str) -> dict[str, Any]:
    said = {"200": _response(answer.__doc__ or "", answer)}
    said |= {status: _response(_REFUSALS[status], Refusal) for status in refusals}
    return {"operationId": name, "summary": summary, "responses": said}


def _health() -> dict[str, Any]:
    operation = _read("health", "Say whether a replica runs that passed its own check.", Health)
    operation["responses"]["503"] = _response("None does.", Health)
    return operation


def _metrics() -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    responses = {"200": {"description": "Prometheus's text format.", "content": text}}
    return {"operationId": "metrics", "summary": "Give figures to Prometheus.", "responses": responses}


def _response(description: str, model: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF + model.__name__}}}
    return {"description": description.splitlines()[0], "content": content}


def page(described: Mapping[str, Any]) -> str:
    """Return a description as HTML for people."""
    return "\n".join(_lines(described)) + "\n"


def _lines(described: Mapping[str, Any]) -> Iterator[str]:
    info = described["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{escape(info['description'])}</p>"
    yield '<p>For machines: <a href="openapi.json">openapi.json</a></p>'
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
            yield from _request(operation)
            rows = [
                (status, _links(one.get("content", {})), escape(one["description"]))
                for status, one in operation["responses"].items()
            ]
            yield from _table(("status", "body", "what"), rows)
    for name, schema in described["components"]["schemas"].items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>'
        fields = schema["properties"].items()
        rows = [(_code(field), _kind(about), escape(about.get("description", ""))) for field, about in fields]
        yield from _table(("field", "type", "what"), rows)
    yield "</body></html>"


def _request(operation: Mapping[str, Any]) -> Iterator[str]:
    if "requestBody" in operation:
        body = operation["requestBody"]
        kinds = ", ".join(map(_code, body["content"]))
        yield f"<p>Body: {escape(body['description'])} {kinds}</p>"
    if "parameters" in operation:
        rows = [(_code(p["name"]), _kind(p["schema"]), escape(p["description"])) for p in operation["parameters"]]
        yield from _table(("parameter", "type", "what"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</table>"


def _links(content: Mapping[str, Any]) -> str:
    return ", ".join(_kind(one["schema"]) for one in content.values())


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{words} {schema[key]}" for key, words in bounds.items() if key in schema]
    said += [f"default {schema['default']}"] if schema.get("default") is not None else []
    return ", ".join([escape(schema["type"]), *map(escape, said)])


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
