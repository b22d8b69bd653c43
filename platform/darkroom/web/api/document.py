"""The document of the API, for programs and for people. Everything it shows, the routes have said of themselves."""

from typing import Any, cast

from flask import Blueprint, Response, current_app, make_response, render_template
from flask_openapi3.openapi import OpenAPI

from darkroom.web.answers import answer
from darkroom.web.identity import asks
from darkroom.web.openapi import operations

blueprint = Blueprint("document", __name__)


@blueprint.get("/openapi.json")
@asks("public")
def show_document() -> Response:
    """The OpenAPI 3.1 document."""
    return answer(_document())


@blueprint.get("/docs")
@asks("public")
def show_docs() -> Response:
    """The same, as a page."""
    document = _document()
    page = render_template(
        "docs.html",
        info=document["info"],
        operations=list(operations(document)),
        schemas=document["components"]["schemas"],
        type_of=type_of,
    )
    return make_response(page)


def _document() -> dict[str, Any]:
    return cast(dict[str, Any], cast(OpenAPI, current_app).api_doc)


def type_of(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    match schema:
        case {"$ref": str(reference)}:
            return reference.rpartition("/")[2]
        case {"anyOf": list(options)} | {"oneOf": list(options)}:
            return " or ".join(dict.fromkeys(type_of(option) for option in options))
        case {"allOf": [only]}:
            return type_of(only)
        case {"enum": list(values)}:
            return " | ".join(str(value) for value in values)
        case {"const": value}:
            return str(value)
        case {"type": "array"}:
            return f"list of {type_of(schema.get('items', {}))}"
        case {"type": str(name)}:
            return f"{name} ({schema['format']})" if "format" in schema else name
        case _:
            return "anything"
