"""Same noise, different words: several prompts with one seed, asked for together. Stores nothing."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkroom.errors import FieldError, InvalidParameters
from darkroom.jobs import JobClass
from darkroom.params import MAX_SEED
from darkroom.web.submission import Rules, Submission, check

FEWEST, MOST = 2, 4
PUNCTUATION = ".,;:!?"


@dataclass(frozen=True)
class Word:
    """A word of a prompt; `is_own` where not every prompt has it."""

    text: str
    is_own: bool


def check_prompts(prompts: Sequence[str], body: Mapping[str, Any], rules: Rules) -> list[Submission]:
    """Hold a job for each prompt to its model's limits, one seed for all. Raises InvalidParameters.

    What is wrong with a prompt stands under its number: prompt-1, prompt-2.
    """
    wanted = {n: prompt for n, prompt in enumerate(prompts, 1) if prompt.strip()}
    limit = f"one of {FEWEST} to {MOST} prompts"
    if len(wanted) < FEWEST:
        empty = next(n for n in range(1, MOST + 1) if n not in wanted)
        raise InvalidParameters([FieldError(f"prompt-{empty}", "is empty", limit)])
    if len(wanted) > MOST:
        raise InvalidParameters([FieldError(f"prompt-{MOST}", f"is followed by {len(wanted) - MOST} more", limit)])
    shared = {"seed": secrets.randbelow(MAX_SEED + 1), **body, "num_images": 1}
    submissions: list[Submission] = []
    errors: dict[str, FieldError] = {}
    for n, prompt in wanted.items():
        try:
            submissions.append(check({**shared, "prompt": prompt}, rules, job_class=JobClass.INTERACTIVE))
        except InvalidParameters as error:
            named = (_under(each, n) for each in error.errors)
            errors |= {each.field: each for each in named if each.field not in errors}
    if errors:
        raise InvalidParameters(errors.values())
    return submissions


def _under(error: FieldError, n: int) -> FieldError:
    return FieldError(f"prompt-{n}", error.problem, error.limit) if error.field == "prompt" else error


def words_of(prompts: Sequence[str]) -> list[list[Word]]:
    """Each prompt's words, and which of them not all have."""
    known = [{_plain(word) for word in prompt.split()} for prompt in prompts]
    common = set.intersection(*known)
    return [[Word(word, _plain(word) not in common) for word in prompt.split()] for prompt in prompts]


def _plain(word: str) -> str:
    return word.casefold().strip(PUNCTUATION)
