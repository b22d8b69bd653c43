"""The API of AUTOMATIC1111's web UI, at the root because clients replace an address's path: as Open WebUI, LibreChat,
SillyTavern and scripts call it. HTTP Basic carries the key.

Clients send whole forms of settings. What would change the picture and is not to be had is refused; what has no meaning
here is not looked at.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, json, request

from darkroom import choices, jobs
from darkroom.errors import JobFinished, PictureUnreadable
from darkroom.jobs import ImageRecord, JobRecord, JobState
from darkroom.picture_metadata import parameters_of, read_file, write
from darkroom.sampler_titles import SPACINGS, TITLES, name_of, title_of
from darkroom.web.answers import answer
from darkroom.web.compat.calls import (
    BODY_WITH_PICTURES_BYTES,
    develop,
    in_words,
    model_called,
    picture,
    refusal,
    refuse_as,
    submission_of,
    succeeded,
)
from darkroom.web.guards import require_json
from darkroom.web.identity import asks, current
from darkroom.web.problems import Problem
from darkroom.web.services import services
from darkroom.web.submission import read_body, read_json
from darkroom.web.uploads import LIMIT as PICTURE_LIMIT
from darkroom.web.uploads import MOST_UPLOAD_BYTES

NAMES = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler_name": "sampler",
    "batch_size": "num_images",
    "init_images": "init_image",
    "denoising_strength": "strength",
}
TAKEN = ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale")
# What would change the picture. A client that asks for it hears that it is not there.
NOT_OFFERED = (
    *("enable_hr", "restore_faces", "tiling", "styles", "subseed_strength", "refiner_checkpoint", "firstpass_image"),
    *("script_name", "alwayson_scripts", "inpainting_mask_invert"),
)
AUTOMATIC = "automatic"
SPACING_NAMES = (AUTOMATIC, *SPACINGS)
CHECKPOINT = "sd_model_checkpoint"
# By what `interrupt` and `progress` know the jobs that came by this door: others of the owner's are none of theirs.
MARK = {"api": "a1111"}
# Settings that clients read and never mean to change.
OPTIONS = {"samples_format": "png", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1}
NOTHING_OF: Mapping[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "sd-modules": [],
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "extensions": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
}

blueprint = Blueprint("a1111", __name__, url_prefix="/sdapi/v1")
blueprint.before_request(require_json)


@blueprint.post("/txt2img")
@asks("submit")
def text_to_image() -> Response:
    """Develop pictures from words."""
    body = read_json(read_body(request))
    return _develop(body, {})


@blueprint.post("/img2img")
@asks("submit")
def image_to_image() -> Response:
    """Develop pictures anew from words and a picture, where its mask is white, or everywhere."""
    request.max_content_length = BODY_WITH_PICTURES_BYTES
    body = read_json(read_body(request))
    sources = body.get("init_images")
    if not isinstance(sources, list) or len(sources) != 1:
        raise refusal("init_images", "is not taken", "a list of one picture, as base64")
    begin = {"init_images": _data_url(sources[0], "init_images"), "denoising_strength": body.get("denoising_strength")}
    mask = body.get("mask")
    return _develop(body, begin if mask is None else begin | {"mask": _data_url(mask, "mask")})


@blueprint.get("/progress")
@asks("read")
def show_progress() -> Response:
    """How far the oldest of the caller's jobs is that runs, among those that came by this API."""
    live = _live_jobs()
    running = [job for job in live if job.state is JobState.RUNNING]
    sight = services().sight_of(running[0]) if running else None
    progress = (sight and sight.progress) or {"step": 0, "num_steps": 0}
    step, num_steps = progress["step"], progress["num_steps"]
    state = {
        "skipped": False,
        "interrupted": False,
        "job": str(running[0].id) if running else "",
        "job_count": len(live),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": num_steps,
    }
    eta = sight.eta.max_seconds if sight and sight.eta else 0.0
    share = min(1.0, step / num_steps) if num_steps > 0 else 0.0
    told = {"progress": share, "eta_relative": eta, "state": state, "current_image": None, "textinfo": None}
    return answer(told | {"current_task": state["job"] or None})


@blueprint.post("/interrupt")
@asks("submit")
def interrupt() -> Response:
    """Call off the caller's jobs that came by this API, queued or running, and nobody else's."""
    for job in _live_jobs():
        try:
            services().cancel(str(job.id))
        except JobFinished:
            continue  # it was faster
    return answer({})


@blueprint.get("/options")
@asks("read")
def show_options() -> Response:
    """The caller's model, and settings that are always so."""
    return answer({CHECKPOINT: _model(), **OPTIONS})


@blueprint.post("/options")
@asks("submit")
def change_options() -> Response:
    """Have the caller's requests by this API use another model from now on. Other settings are not looked at."""
    body = read_json(read_body(request))
    if (name := body.get(CHECKPOINT)) is not None:
        choices.choose_model(services().database, model_called(name), owner=current().owner)
    return _json(None)


@blueprint.get("/sd-models")
@asks("read")
def list_models() -> Response:
    """Every model on offer, by the one name that it has."""
    names = [entry.name for entry in services().catalog.models]
    nothing = {"hash": None, "sha256": None, "config": None}
    return _json([{"title": name, "model_name": name, "filename": name, **nothing} for name in names])


@blueprint.get("/samplers")
@asks("read")
def list_samplers() -> Response:
    """The samplers of all models, by their titles. How sigmas are spread is said apart: see schedulers."""
    offered = {name for entry in services().catalog.models for name in entry.limits.samplers}
    plain = {_without_spacing(name) for name in offered}
    found = [{"name": title_of(name), "aliases": [name], "options": {}} for name in sorted(plain)]
    return _json(found)


@blueprint.get("/schedulers")
@asks("read")
def list_schedulers() -> Response:
    """How sigmas may be spread: as the sampler does by itself, or otherwise."""
    common = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    labels = {AUTOMATIC: "Automatic", **SPACINGS}
    return _json([{"name": name, "label": label, **common} for name, label in labels.items()])


@blueprint.post("/png-info")
@asks("read")
def read_png_info() -> Response:
    """Read how a picture was made from its file."""
    request.max_content_length = BODY_WITH_PICTURES_BYTES
    body = _decoded(read_json(read_body(request)).get("image"), "image")
    if len(body) > MOST_UPLOAD_BYTES:
        raise refusal("image", f"has {len(body)} bytes", PICTURE_LIMIT)
    try:
        found = read_file(body)
    except PictureUnreadable as error:
        raise refusal("image", "cannot be read as a picture", PICTURE_LIMIT) from error
    items = {} if found.text is None else {"parameters": found.text}
    return answer({"info": found.text or "", "items": items, "parameters": found.parameters.known})


@blueprint.get("/<any({}):kind>".format(", ".join(f'"{name}"' for name in NOTHING_OF)))
@asks("read")
def show_nothing(kind: str) -> Response:
    """What clients ask for and Darkroom has none of."""
    return _json(NOTHING_OF[kind])


def _develop(body: Mapping[str, Any], begin: Mapping[str, Any]) -> Response:
    if wanted := [name for name in NOT_OFFERED if body.get(name)]:
        raise refusal(wanted[0], "is not offered", "nothing, or false")
    fields = {**{name: body.get(name) for name in TAKEN}, **begin}
    overrides = body.get("override_settings")
    chosen = overrides.get(CHECKPOINT) if isinstance(overrides, dict) else None
    fields |= {"model": model_called(chosen) if chosen else _model(), "metadata": MARK}
    fields |= {"batch_size": _num_images(body), "sampler_name": _sampler(body)}
    fields["seed"] = None if body.get("seed") == -1 else body.get("seed")
    job = develop(submission_of(fields, NAMES), NAMES)
    echo = {name: value for name, value in body.items() if name not in {"init_images", "mask"}}
    if job.state is JobState.CANCELED:  # interrupted: what is there by now is nothing
        return answer({"images": [], "parameters": echo, "info": json.dumps(_info(job))})
    files = [b64encode(picture(services(), image)).decode() for image in succeeded(job).images]
    return answer({"images": files, "parameters": echo, "info": json.dumps(_info(job))})


def _model() -> str:
    """What the caller chose, as long as it is on offer; else the default."""
    catalog = services().catalog
    chosen = choices.chosen_model(services().database, owner=current().owner)
    return chosen if chosen in {entry.name for entry in catalog.models} else catalog.default.name


def _num_images(body: Mapping[str, Any]) -> int:
    num_images = 1
    for name in ("batch_size", "n_iter"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise refusal(name, "is not taken", "a whole number from 1")
        num_images *= 1 if value is None else value
    return num_images


def _sampler(body: Mapping[str, Any]) -> Any:
    """The sampler by its title, whether the spacing of its sigmas stands in it or apart."""
    spacing = body.get("scheduler") or AUTOMATIC
    if not isinstance(spacing, str) or spacing.lower() not in SPACING_NAMES:
        raise refusal("scheduler", "is not a scheduler", f"one of {', '.join(SPACING_NAMES)}")
    title = body.get("sampler_name") or body.get("sampler_index") or None
    return (name_of(title, spacing=spacing) or title) if isinstance(title, str) else title


def _without_spacing(name: str) -> str:
    base, _, suffix = name.rpartition("_")
    return base if base in TITLES and suffix in SPACINGS else name


def _data_url(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise refusal(field, "is not text", "a picture as base64")
    return value if value.startswith("data:") else f"data:application/octet-stream;base64,{value}"


def _decoded(value: Any, field: str) -> bytes:
    text = _data_url(value, field).partition(",")[2]
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise refusal(field, "is not base64", "a picture as base64") from error


def _live_jobs() -> list[JobRecord]:
    """The caller's jobs by this API that have not ended, oldest first."""
    return jobs.list_live(services().database, owner=current().owner, metadata=MARK)


def _info(job: JobRecord) -> dict[str, Any]:
    """What the web UI tells of a finished job: clients read seeds and the texts of its pictures from it."""
    params = job.params
    seeds = [image.seed for image in job.images]
    num_images = len(seeds)
    return {
        "prompt": params.prompt,
        "all_prompts": [params.prompt] * num_images,
        "negative_prompt": params.negative_prompt,
        "all_negative_prompts": [params.negative_prompt] * num_images,
        "seed": params.seed,
        "all_seeds": seeds,
        "subseed": 0,
        "all_subseeds": [0] * num_images,
        "subseed_strength": 0,
        "width": params.width,
        "height": params.height,
        "sampler_name": title_of(params.sampler),
        "cfg_scale": params.guidance_scale,
        "steps": params.num_inference_steps,
        "batch_size": params.num_images,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": None,
        "denoising_strength": params.strength,
        "extra_generation_params": {"Darkroom job": str(job.id)},
        "index_of_first_image": 0,
        "infotexts": list(_infotexts(job)),
        "styles": [],
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }


def _infotexts(job: JobRecord) -> Iterator[str]:
    for image in job.images:
        yield _infotext(job, image)


def _infotext(job: JobRecord, image: ImageRecord) -> str:
    return write(parameters_of(job.params, model=job.model, seed=image.seed))


def _json(document: Any) -> Response:
    return Response(json.dumps(document), content_type="application/json")


def _problem(problem: Problem) -> tuple[Mapping[str, Any], int]:
    words = in_words(problem)
    return {"error": problem.code, "detail": words, "body": "", "errors": words}, problem.status


refuse_as(blueprint, _problem)
