"""Uploads over HTTP: a picture in a form, or as the whole body, for jobs to begin from."""

from flask import Response, request

from darkroom import jobs
from darkroom.errors import FieldError, InvalidParameters, UploadNotFound
from darkroom.web import schemas
from darkroom.web.answers import answer
from darkroom.web.documents import upload_document, upload_path
from darkroom.web.identity import asks, current
from darkroom.web.openapi import ApiBlueprint, problems, takes
from darkroom.web.problems import Refused
from darkroom.web.services import read_uuid, services
from darkroom.web.submission import read_body
from darkroom.web.uploads import MOST_UPLOAD_BYTES

FORM_BYTES = 16 * 1024  # what a form writes around its file
FORM = "multipart/form-data"
RAW = frozenset({"image/png", "image/jpeg", "image/webp", "application/octet-stream"})

blueprint = ApiBlueprint("api_uploads", __name__)


@blueprint.post("/api/v1/uploads", responses={201: schemas.UploadDocument, **problems(400, 413, 415)})
@asks("submit")
@takes(form=schemas.UploadForm)
def upload_picture() -> Response:
    """Store a picture for jobs to begin from: 201. As the field `file` of a form, or as the whole body."""
    upload = services().upload(read_picture())
    return answer(upload_document(upload), status=201, headers={"Location": upload_path(upload.id)})


@blueprint.get("/api/v1/uploads/<upload_id>", responses={200: schemas.UploadDocument, **problems(404)})
@asks("read")
def show_upload(upload_id: str) -> Response:
    """An upload, as long as jobs may begin from it."""
    found = read_uuid(upload_id)
    if found is None:
        raise UploadNotFound(upload_id)
    return answer(upload_document(jobs.get_upload(services().database, found, owner=current().owner)))


@blueprint.delete("/api/v1/uploads/<upload_id>", responses={204: None, **problems(404)})
@asks("submit")
def delete_upload(upload_id: str) -> Response:
    """Let no further job begin from an upload: 204. It is deleted when none that lives needs it."""
    found = read_uuid(upload_id)
    if found is None:
        raise UploadNotFound(upload_id)
    jobs.expire_upload(services().database, found, owner=current().owner)
    return Response(status=204)


def read_picture() -> bytes:
    """Read the file of a form, or the body. Raises Refused (415), RequestEntityTooLarge, InvalidParameters."""
    is_form = request.mimetype == FORM
    request.max_content_length = MOST_UPLOAD_BYTES + (FORM_BYTES if is_form else 0)
    if is_form:
        if (file := request.files.get("file")) is None:
            raise InvalidParameters([FieldError("file", "is missing", "a picture in a form, or as the whole body")])
        body: bytes = file.read()
        return body
    if request.mimetype not in RAW:
        raise Refused(415, "unsupported_media_type", f"The body must be one of {', '.join(sorted({FORM, *RAW}))}.")
    return read_body(request)
