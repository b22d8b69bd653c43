"""What pages say of a job, in words. Knows no HTTP and asks nobody."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from darkroom.catalog import ModelEntry
from darkroom.jobs import JobRecord, JobState
from darkroom.params import GenerationParams
from darkroom.sampler_titles import title_of
from darkroom.web.estimate import interval_in_words
from darkroom.web.pace import Eta
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

FILES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}

# As the workers make them; of a sampler that takes two looks a step there may be more, of part of a walk fewer.
MOST_FRAMES = 8
SMALLEST_SHOWN = 640
LARGEST_SHOWN = 832

LINE = "line"
STAGES = {
    LINE: "Waiting in the line",
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
            return Sentence("Waiting", _place(sight.position) + _until(sight.eta), is_live=True, step=0)
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


def _until(eta: Eta | None) -> str:
    return f" {interval_in_words(eta)} until it is done, as things go." if eta else ""


def announcement_of(sight: Sight) -> str:
    """What is said aloud when the job has moved on: its state, and how it ended."""
    sentence = sentence_of(sight)
    return f"{sentence.title}." if sight.job.state is JobState.QUEUED else sentence.text


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
            rest = f" {interval_in_words(sight.eta)} to go." if sight.eta else ""
            return Sentence(title, f"Step {step} of {num_steps}.{rest}", True, step, num_steps)
        case "decode":
            return Sentence(title, "Fixing the picture.", True, step, num_steps)
        case "upload":
            return Sentence(title, "Storing the picture.", True, step, num_steps)
        case _:
            return Sentence("Developing", "A worker has it.", is_live=True)


@dataclass(frozen=True)
class Fact:
    """One line of what is known of a job; `link` leads to more."""

    name: str
    text: str
    link: str | None = None
    is_long: bool = False


def parameters_in_words(job: JobRecord) -> list[Fact]:
    """What was asked for."""
    params = job.params
    facts = [
        Fact("Size", f"{params.width} × {params.height}"),
        Fact("Steps", str(params.num_inference_steps)),
        Fact("Guidance", f"{params.guidance_scale:g}"),
        Fact("Sampler", title_of(params.sampler)),
        Fact("Seed", str(params.seed)),
        Fact("Pictures", str(params.num_images)),
        Fact("File", FILES[params.format]),
    ]
    if params.strength is not None:
        facts.append(Fact("Begins from a picture", f"of which {params.strength:.0%} is developed anew"))
    facts += [Fact(f"LoRA {use.name}", f"{use.weight:g}") for use in params.loras]
    return [*facts, Fact("Avoid", params.negative_prompt, is_long=True)] if params.negative_prompt else facts


def provenance_of(job: JobRecord, entry: ModelEntry | None) -> list[Fact]:
    """Where the pictures come from: the model and its license, and who developed them on what."""
    facts = [Fact("Model", entry.title if entry else job.model)]
    if entry:
        facts.append(Fact("License", entry.license, link=entry.license_url))
    if entry and entry.revision:
        facts.append(Fact("Revision", entry.revision))
    if job.worker_id:
        facts.append(Fact("Worker", job.worker_id))
    if job.images and job.images[0].fingerprint:
        facts.append(Fact("Device", job.images[0].fingerprint, is_long=True))
    if job.attempt > 1:
        facts.append(Fact("Attempt", str(job.attempt)))
    return facts


@dataclass(frozen=True)
class Stage:
    """A stretch of a job's life. `begin` and `share` are of the whole, from 0 to 100: where it lies in a bar."""

    name: str
    title: str
    text: str
    begin: float
    share: float


def stages_of(job: JobRecord) -> list[Stage]:
    """How long each stage took, in order. One that never ran has none."""
    timed = _in_order(job.timings.items())
    if job.started_at:
        timed.insert(0, (LINE, (job.started_at - job.created_at).total_seconds()))
    whole = sum(seconds for _, seconds in timed) or 1.0
    stages, begin = [], 0.0
    for name, seconds in timed:
        share = 100 * seconds / whole
        stages.append(Stage(name, STAGES.get(name, name), _seconds(seconds), begin, share))
        begin += share
    return stages


def walk_frames(params: GenerationParams) -> int:
    """How many frames a walk has: one of noise, one for each step up to the picture, as far as there is room."""
    return min(MOST_FRAMES, params.num_inference_steps + 1)


def shown_size(width: int, height: int) -> tuple[int, int]:
    """The size in CSS pixels at which a lone picture is shown: small ones enlarged, large ones to fit a screen."""
    longer = max(width, height)
    scale = min(max(longer, SMALLEST_SHOWN), LARGEST_SHOWN) / longer
    return round(width * scale), round(height * scale)


def moments_of(job: JobRecord) -> list[Fact]:
    """When it was submitted, and when it ended or will."""
    end = Fact("Ended", moment(job.finished_at)) if job.finished_at else Fact("Expires", moment(job.deadline_at))
    return [Fact("Submitted", moment(job.created_at)), end]


def times_in_words(job: JobRecord) -> list[tuple[str, str]]:
    """When and how long, line by line."""
    submitted, end = ((fact.name, fact.text) for fact in moments_of(job))
    return [submitted, *((stage.title, stage.text) for stage in stages_of(job)), end]


def _in_order(timings: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    order = list(STAGES)
    return sorted(timings, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))


def moment(moment: datetime) -> str:
    """A point in time."""
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


def _span(start: datetime | None, end: datetime | None) -> str:
    return _seconds((end - start).total_seconds()) if start and end else "an unknown time"


def _seconds(seconds: float) -> str:
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
