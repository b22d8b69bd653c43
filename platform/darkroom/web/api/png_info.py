"""What a picture's file says of its making, over HTTP. The picture is neither decoded nor kept."""

from flask import Response

from darkroom.errors import FieldError, InvalidParameters, PictureUnreadable
from darkroom.picture_metadata import FORMATS, read_file
from darkroom.web import schemas, webhook_schemas
from darkroom.web.answers import answer
from darkroom.web.api.uploads import read_picture
from darkroom.web.identity import asks
from darkroom.web.openapi import ApiBlueprint, problems, takes
from darkroom.web.uploads import MOST_UPLOAD_BYTES

LIMIT = f"a picture ({', '.join(FORMATS)}) of at most {MOST_UPLOAD_BYTES} bytes"

blueprint = ApiBlueprint("png_info", __name__)


@blueprint.post("/api/v1/png-info", responses={200: webhook_schemas.PngInfo, **problems(400, 413, 415)})
@asks("read")
@takes(form=schemas.UploadForm)
def read_png_info() -> Response:
    """Read how a picture was made from its file. As the field `file` of a form, or as the whole body."""
    try:
        found = read_file(read_picture())
    except PictureUnreadable as error:
        raise InvalidParameters([FieldError("file", "cannot be read as a picture", LIMIT)]) from error
    return answer({"text": found.text, "parameters": found.parameters.known})
