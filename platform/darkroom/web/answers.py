"""How answers are made: JSON, its validators, pages of a list. Knows no job."""

from collections.abc import Iterable, Mapping
from typing import Any

from flask import Response, json, request


class Whole(Response):
    """An answer that gives its server the whole body in a list, where it has it.

    granian sends a list at once; anything else it asks for piece by piece, and once more for the end.
    """

    def get_app_iter(self, environ: Any) -> Iterable[bytes]:
        """The body, as WSGI has it."""
        pieces = super().get_app_iter(environ)
        if not self.is_sequence:
            return pieces
        body = list(pieces)
        self.close()
        return body


def answer(document: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json.dumps(document), status, headers, content_type="application/json")


def unchanged(etag: str, headers: Mapping[str, str] | None = None) -> Response | None:
    """304 for who has this version already, and None for everybody else. The tag is bare, without its quotes."""
    if not request.if_none_match.contains_weak(etag):
        return None
    return Response(status=304, headers={**(headers or {}), "ETag": f'"{etag}"'})
