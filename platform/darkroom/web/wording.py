"""What pages say of a job, in words. Knows no HTTP and asks nobody."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from darkroom.jobs import JobRecord, JobState
from darkroom.web.services import Sight

LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "model": "Model",
    "size": "Size",
    "width": "Width",
    "height": "Height",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "sampler": "Sampler",
    "seed": "Seed",
    "num_images": "Pictures",
    "format": "File",
    "quality": "Quality",
    "init_image": "Picture to begin from",
    "strength": "Strength",
    "loras": "LoRAs",
    "exact": "Exact",
    "walk": "Walk",
}

SMALLEST_SHOWN = 576
LARGEST_SHOWN = 832

STAGES = {
    "fetch": "Fetching what it begins from",
    "wait": "Waiting for a row",
    "encode": "Reading the prompt",
    "denoise": "Denoising",
    "decode": "Decoding",
    "compress": "Writing the file",
    "upload": "Storing",
}


@dataclass(frozen=True)
class Sentence:
    """A job's state as a page says it. step and num_steps fill the bar; without step it only moves."""

    title: str
    text: str
    is_live: bool = False
    step: int | None = None
    num_steps: int | None = None


def sentence_of(sight: Sight) -> Sentence:
    """Say where the job is."""
    match sight.job.state:
        case JobState.QUEUED:
            return Sentence("Waiting", _place(sight.position), is_live=True)
        case JobState.RUNNING:
            return _developing(sight)
        case JobState.SUCCEEDED:
            return Sentence("Developed", f"Developed in {_span(sight.job.started_at, sight.job.finished_at)}.")
        case JobState.FAILED:
            return Sentence("Failed", "It could not be developed.")
        case JobState.CANCELED:
            return Sentence("Canceled", "It was called off before it was done.")
        case JobState.EXPIRED:
            return Sentence("Expired", "Its deadline passed before it was done.")


def _place(position: int | None) -> str:
    if position is None:
        return "Waiting in the line."
    if position == 0:
        return "Next in the line."
    return f"{position} {'job' if position == 1 else 'jobs'} ahead of it."


def _developing(sight: Sight) -> Sentence:
    progress = sight.progress or {}
    step, num_steps = progress.get("step"), progress.get("num_steps")
    title = f"{step}/{num_steps} Developing"
    match progress.get("stage"):
        case "fetch":
            return Sentence("Developing", "Fetching the picture that it begins from.", is_live=True)
        case "encode":
            return Sentence("Developing", "Reading the prompt.", is_live=True)
        case "denoise":
            return Sentence(title, f"Step {step} of {num_steps}.", True, step, num_steps)
        case "decode":
            return Sentence(title, "Fixing the picture.", True, step, num_steps)
        case "upload":
            return Sentence(title, "Storing the picture.", True, step, num_steps)
        case _:
            return Sentence("Developing", "A worker has it.", is_live=True)


def parameters_in_words(job: JobRecord) -> list[tuple[str, str]]:
    """The table of what was asked for."""
    params = job.params
    rows = [
        ("Model", job.model),
        ("Size", f"{params.width} × {params.height}"),
        ("Steps", str(params.num_inference_steps)),
        ("Guidance", f"{params.guidance_scale:g}"),
        ("Sampler", params.sampler),
        ("Seed", str(params.seed)),
        ("Pictures", str(params.num_images)),
        ("Format", params.format),
        ("Priority", job.job_class.name.lower()),
    ]
    return [*rows, ("Avoid", params.negative_prompt)] if params.negative_prompt else rows


def shown_size(width: int, height: int) -> tuple[int, int]:
    """The size in CSS pixels at which a lone picture is shown: small ones enlarged, large ones to fit a screen."""
    longer = max(width, height)
    scale = min(max(longer, SMALLEST_SHOWN), LARGEST_SHOWN) / longer
    return round(width * scale), round(height * scale)


def times_in_words(job: JobRecord) -> list[tuple[str, str]]:
    """The table of when and how long. A stage that never ran has no row."""
    rows = [("Submitted", _moment(job.created_at))]
    if job.started_at:
        rows.append(("Waited in the line", _span(job.created_at, job.started_at)))
    if job.attempt > 1:
        rows.append(("Attempt", str(job.attempt)))
    rows += [(STAGES.get(stage, stage), _seconds(seconds)) for stage, seconds in _in_order(job.timings.items())]
    if job.finished_at:
        rows.append(("Ended", _moment(job.finished_at)))
    else:
        rows.append(("Expires", _moment(job.deadline_at)))
    return rows


def _in_order(timings: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    order = list(STAGES)
    return sorted(timings, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))


def _moment(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


def _span(start: datetime | None, end: datetime | None) -> str:
    return _seconds((end - start).total_seconds()) if start and end else "an unknown time"


def _seconds(seconds: float) -> str:
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
