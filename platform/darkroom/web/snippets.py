"""A job as somebody else's tools would ask for it: texts to copy. Knows the API's words; asks nobody."""

import json
import shlex
from typing import Any

from darkroom.jobs import JobRecord
from darkroom.params import GenerationParams
from darkroom.picture_metadata import parameters_of, write
from darkroom.storage import reference_of

KEY_VARIABLE = "DARKROOM_API_KEY"


def fields_of(params: GenerationParams, *, model: str) -> dict[str, Any]:
    """The request that would make the same pictures: what is as it would be anyway is left out."""
    inputs = {name: reference_of(key) for name in ("init_image", "mask") if (key := getattr(params, name))}
    return {"model": model, **params.model_dump(mode="json", exclude_defaults=True), **inputs}


def parameters_text(job: JobRecord) -> str:
    """What AUTOMATIC1111's web UI and its like read."""
    return write(parameters_of(job.params, model=job.model, seed=job.params.seed))


def curl_text(job: JobRecord, *, url: str, has_keys: bool) -> str:
    """A line for a shell. The key is the shell's to know."""
    body = json.dumps(fields_of(job.params, model=job.model), indent=2, ensure_ascii=False)
    lines = [f"curl {shlex.quote(f'{url}/api/v1/jobs')}", "-H 'Content-Type: application/json'"]
    if has_keys:
        lines.append(f'-H "Authorization: Bearer ${KEY_VARIABLE}"')
    return " \\\n  ".join([*lines, f"-d {shlex.quote(body)}"])


def python_text(job: JobRecord, *, url: str) -> str:
    """A program that makes the pictures and saves them. It takes its key from the environment."""
    fields = fields_of(job.params, model=job.model)
    prompt = fields.pop("prompt")
    named = "".join(f"        {name}={value!r},\n" for name, value in fields.items())
    extension = job.params.format
    return (
        "from darkroom.client import Darkroom\n\n"
        f"with Darkroom({url!r}) as darkroom:\n"
        f"    pictures = darkroom.generate(\n        {prompt!r},\n{named}    )\n"
        "    for picture in pictures:\n"
        f'        picture.save(f"{{picture.n}}.{extension}")\n'
    )
