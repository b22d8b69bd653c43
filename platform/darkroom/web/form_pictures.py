"""Pictures that come with the form: one to begin from, or one whose file says how it was made. Knows one request."""

import re
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from flask import request, url_for

from darkroom import jobs
from darkroom.catalog import ModelEntry
from darkroom.errors import (
    FieldError,
    ImageNotFound,
    InvalidParameters,
    JobNotFound,
    PictureUnreadable,
    UploadNotFound,
)
from darkroom.jobs import JobClass
from darkroom.picture_metadata import read_file
from darkroom.web.documents import image_path
from darkroom.web.form import Form, filled_texts, typed_form
from darkroom.web.identity import current
from darkroom.web.services import job_uuid, read_uuid, services
from darkroom.web.submission import Submission, check, read_form
from darkroom.web.uploads import LIMIT, MOST_UPLOAD_BYTES

# What a form writes around a picture.
FORM_BYTES = 128 * 1024
PICTURES = ("init_image", "mask")
GONE = "The picture to begin from is not kept any more. Choose another one, or develop without."
PICTURE_ID = re.compile(r"job:([0-9a-f-]{36})/([0-9]{1,6})")


def let_pictures_in() -> None:
    """Before a request's form is read: the page's own may have a picture in it."""
    if request.endpoint == "form.submit":
        request.max_content_length = MOST_UPLOAD_BYTES + FORM_BYTES


def sent_picture() -> bytes:
    """The file that came with the form; empty where none did."""
    file = request.files.get("picture")
    if not file:
        return b""
    with file.stream as stream:  # a large one is a file on the disk
        body: bytes = stream.read()
    return body


def with_picture(typed: Mapping[str, str], body: bytes) -> dict[str, str]:
    """What was typed; to begin from a picture, if one came, which is stored by that. Raises InvalidParameters."""
    if not body:
        return dict(typed)
    upload = services().upload(body, field="init_image")
    return {**typed, "init_image": str(upload.id), "mask": ""}


def begun(typed: Mapping[str, str], body: bytes) -> dict[str, str]:
    """What was typed, to begin from a picture, which must have come or be named. Raises InvalidParameters."""
    texts = with_picture(typed, body)
    if not texts.get("init_image"):
        raise InvalidParameters([FieldError("init_image", "is missing", LIMIT)])
    return texts


def filled_form(entry: ModelEntry, typed: Mapping[str, str], body: bytes) -> Form:
    """The form as a picture's file says that it was made, held to the limits; else a form that begins from it.

    Raises InvalidParameters.
    """
    try:
        found = read_file(body).parameters
    except PictureUnreadable as error:
        raise InvalidParameters([FieldError("init_image", "cannot be read as a picture", LIMIT)]) from error
    if found.known:
        return _held(entry, filled_texts(typed, found), made_by=found.model)
    if "img2img" in entry.features:
        note = "The picture's file does not say how it was made: it is now what to begin from."
        return typed_form(entry, with_picture(typed, body), note=note)
    raise InvalidParameters([FieldError("init_image", "does not say how it was made", "a picture whose file says so")])


def _held(entry: ModelEntry, texts: Mapping[str, str], *, made_by: str | None) -> Form:
    """The form with what a file says, and beside each field what the model does not take of it."""
    note = "Filled in as the picture's file says that it was made."
    here = {each.name: each for each in services().catalog.models}
    if made_by and made_by not in here:
        note += f" Its model, {made_by}, is not here."
    entry = here.get(made_by or "", entry)
    try:
        held_to_rules({**texts, "model": entry.name})
    except InvalidParameters as error:
        return typed_form(entry, texts, error.errors, note=note)
    return typed_form(entry, texts, note=note)


def held_to_rules(typed: Mapping[str, str]) -> Submission:
    """What the form asks for, ahead of bulk work. Raises InvalidParameters."""
    return check(read_form(typed), services().rules(), job_class=JobClass.INTERACTIVE)


def with_kept_picture(form: Form) -> Form:
    """The form as it is; where its picture or the mask of that is not there any more, without both, and saying so."""
    if all(_is_kept(reference) for name in PICTURES if (reference := form.texts[name])):
        return form
    return replace(form, texts={**form.texts, **dict.fromkeys(PICTURES, "")}, note=GONE)


def _is_kept(reference: str) -> bool:
    try:
        if found := PICTURE_ID.fullmatch(reference):
            services().image(found[1], found[2])
        else:
            jobs.get_upload(services().database, job_uuid(reference), owner=current().owner)
    except (JobNotFound, ImageNotFound, UploadNotFound):
        return False
    return True


def source_path(reference: str) -> str | None:
    """Where the picture is that the form begins from, small; None for what names none."""
    if found := PICTURE_ID.fullmatch(reference):
        return f"{image_path(UUID(found[1]), int(found[2]))}?variant=thumb"
    upload_id = read_uuid(reference)
    return url_for("form.show_upload", upload_id=upload_id) if upload_id else None
