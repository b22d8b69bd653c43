"""The OpenAPI document, gathered from the routes themselves. Checks no request: see submission.py and queries.py.

flask-openapi3 would also validate, but it reads duplicate keys and NaN as Python does, and tells errors in a form of
its own. Here it only describes.
"""

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar

from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.info import Info
from flask_openapi3.models.license import License
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, create_model

from darkroom import __version__
from darkroom.web.schemas import Problem

View = TypeVar("View", bound=Callable[..., Any])

EVERYWHERE = (401, 403, 421, 422, 429, 503)
WITH_A_BODY = (400, 413, 415)
SECURITY_SCHEMES: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key. Without keys, on loopback, none is asked for."}
}
DESCRIPTION = """\
Pictures from words, as jobs that survive. Submit a job, follow it, fetch its pictures. A refusal is an RFC 9457
problem document whose `code` is stable and whose `errors` name every field that was not taken, with its limit."""


def takes(**models: type[BaseModel]) -> Callable[[View], View]:
    """Describe what a route reads: `query`, `header`, `body`, `form`, each by a model. Stands right above the view."""

    def describe(view: View) -> View:
        view.__annotations__ |= models
        return view

    return describe


def problems(*statuses: int) -> dict[Any, Any]:
    """The responses of these statuses: each tells a problem."""
    return {status: problem(status) for status in statuses}


def problem(status: int) -> dict[str, Any]:
    """One response that tells a problem."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def pictures(*content_types: str) -> dict[str, Any]:
    """A response that is a file."""
    schema = {"type": "string", "format": "binary"}
    return {"description": "OK", "content": {content_type: {"schema": schema} for content_type in content_types}}


class ApiBlueprint(APIBlueprint):
    """Routes that describe themselves. What the path names needs no model of its own."""

    def __init__(self, name: str, import_name: str, **options: Any) -> None:
        options.setdefault("abp_responses", problems(*EVERYWHERE))
        options.setdefault("abp_security", [{"key": []}])
        super().__init__(name, import_name, operation_id_callback=operation_id, **options)

    def _collect_openapi_info(self, rule: str, func: Callable[..., Any], **options: Any) -> Any:
        func.__dict__["__delay_validate_request__"] = True  # which means: never
        if names := re.findall(r"<(?:\w+:)?(\w+)>", rule):
            fields: dict[str, Any] = {name: (str, ...) for name in names}
            func.__annotations__ |= {"path": create_model("Path", **fields)}
        return super()._collect_openapi_info(rule, func, **options)


def operation_id(*, name: str, **_: Any) -> str:
    """What generated clients call an operation: the name of its view."""
    return name


class _Application(OpenAPI):
    """Has no asynchronous view, and looks for none at each request."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create(import_name: str) -> OpenAPI:
    """An application that knows its own document. Its pages are ours: nothing is loaded from elsewhere."""
    return _Application(
        import_name,
        info=Info(title="Darkroom", version=__version__, description=DESCRIPTION, license=License(name="Apache-2.0")),
        security_schemes=SECURITY_SCHEMES,
        validation_error_model=Problem,
        doc_ui=False,
    )


def operations(document: dict[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Every (path, method, operation) of a document, in its order."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation
