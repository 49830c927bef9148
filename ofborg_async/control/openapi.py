"""The OpenAPI document, made from the routes and the snapshots' own types, so that it cannot say anything else."""

from __future__ import annotations

import enum
import types
from http import HTTPStatus
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs

from ofborg_async import __version__
from ofborg_async.control.inputs import MAX_NAMES, MAX_SECONDS, MAX_TEXT_CHARACTERS, MAX_WHOLE, Kind, Parameter
from ofborg_async.control.routes import ROUTES, Route
from ofborg_async.model import reload, status

_Schema = dict[str, Any]

_SNAPSHOTS = (
    status.JobSnapshot,
    status.SystemSnapshot,
    status.IdentitySnapshot,
    status.LockSnapshot,
    status.BrokenLock,
    status.SlotSnapshot,
    status.BrokerSnapshot,
    status.DaemonSnapshot,
    status.HistoryEntry,
    reload.FaultReport,
    reload.IdentityChange,
    reload.ReloadReport,
)
_SEGMENT: _Schema = {"type": "string", "format": "segment", "minLength": 1}
_TEXT: _Schema = {"type": "string", "format": "printable", "maxLength": MAX_TEXT_CHARACTERS}
_INPUTS: dict[Kind, _Schema] = {
    Kind.TEXT: _TEXT,
    Kind.NAMES: {"type": "array", "items": _TEXT, "maxItems": MAX_NAMES},
    Kind.WHOLE: {"type": "integer", "minimum": 1, "maximum": MAX_WHOLE},
    Kind.SECONDS: {"type": "number", "minimum": 0, "maximum": MAX_SECONDS},
    Kind.FLAG: {"type": "boolean"},
    Kind.MOMENT: {"type": "string", "format": "date-time"},
}
_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def openapi_document() -> _Schema:
    """The document (OpenAPI 3.1), as JSON values."""
    paths: dict[str, _Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ofborg-async control API",
            "version": __version__,
            "description": (
                "HTTP/1.1 on the daemon's Unix socket, one request a connection. Times are RFC 3339 UTC texts, "
                "durations seconds, sizes bytes. Routes marked `x-loopback` are also on the optional loopback listener."
                " Format `printable`: without control, format or unassigned characters and blanks other than the space;"
                " `segment`: the same, without `/`, and neither `.` nor `..`."
            ),
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _operation(route: Route) -> _Schema:
    variables = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    answer = {"description": route.summary, "content": _content(route.answers)}
    statuses = [HTTPStatus.ACCEPTED if route.answers == "Accepted" else HTTPStatus.OK, *route.also]
    operation: _Schema = {
        "summary": route.summary,
        "x-loopback": route.open,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": _SEGMENT} for name in variables),
            *(
                {"name": item.name, "in": "query", "description": item.summary, "schema": _INPUTS[item.kind]}
                for item in route.query
            ),
        ],
        "responses": {
            **{str(status.value): answer for status in statuses},
            "default": {"description": "a problem, with its remedy", "content": _content("Problem")},
        },
    }
    if route.body:
        schema = {
            "type": "object",
            "additionalProperties": False,
            "properties": {item.name: _field_schema(item) for item in route.body},
        }
        operation["requestBody"] = {"required": False, "content": {"application/json": {"schema": schema}}}
    return operation


def _content(answers: str) -> _Schema:
    if "/" in answers:
        return {answers: {"schema": {"type": "string"}}}
    schema = {"type": "object"} if answers == "object" else _reference(answers)
    return {"application/json": {"schema": schema}}


def _field_schema(item: Parameter) -> _Schema:
    """A body's field: null is as if it were left out."""
    schema = _INPUTS[item.kind]
    return {**schema, "type": [schema["type"], "null"], "description": item.summary}


def _schemas() -> dict[str, _Schema]:
    schemas = {cls.__name__: _class_schema(cls) for cls in _SNAPSHOTS}
    schemas["Locks"] = _object(schema=_integer(), locks=_array(_reference("LockSnapshot")))
    schemas["Broken"] = _object(schema=_integer(), lock=_reference("BrokenLock"))
    schemas["History"] = _object(schema=_integer(), entries=_array(_reference("HistoryEntry")))
    schemas["Why"] = _object(identity=_string(), why=_string())
    schemas["Drained"] = _object(drained={"type": "boolean"})
    schemas["Health"] = _object(verdict=_string())
    schemas["Accepted"] = _object(accepted={"type": "boolean"})
    schemas["Problem"] = _object(error=_string(), remedy=_string())
    return schemas


def _class_schema(cls: type[attrs.AttrsInstance]) -> _Schema:
    hints = get_type_hints(cls)
    described = _object(**{field.name: _type_schema(hints[field.name]) for field in attrs.fields(cls)})
    return described | {"description": " ".join((cls.__doc__ or "").split())}


def _type_schema(hint: Any) -> _Schema:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    if isinstance(hint, type) and attrs.has(hint):
        return _reference(hint.__name__)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _array(_type_schema(arguments[0]))
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1])}
    if origin in {types.UnionType, Union}:
        return {"anyOf": [_type_schema(argument) for argument in arguments]}
    raise TypeError(f"no JSON schema is known for {hint!r}")


def _object(**properties: _Schema) -> _Schema:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _array(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _reference(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _string() -> _Schema:
    return {"type": "string"}


def _integer() -> _Schema:
    return {"type": "integer"}
