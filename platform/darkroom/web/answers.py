"""How answers are made: JSON, its validators, pages of a list. Knows no job."""

from collections.abc import Mapping
from typing import Any

from flask import Response, json, request


def answer(document: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json.dumps(document), status, headers, content_type="application/json")


def unchanged(etag: str, headers: Mapping[str, str] | None = None) -> Response | None:
    """304 for who has this version already, and None for everybody else. The tag is bare, without its quotes."""
    if not request.if_none_match.contains_weak(etag):
        return None
    return Response(status=304, headers={**(headers or {}), "ETag": f'"{etag}"'})
