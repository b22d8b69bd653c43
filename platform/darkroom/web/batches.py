"""Many jobs in one request: a list of them, or a matrix that is multiplied out. Stores nothing.

A request is refused whole, and counted before it is multiplied out: a few braces can stand for millions.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from darkroom.errors import FieldError, InvalidParameters
from darkroom.jobs import JobClass
from darkroom.params import MAX_SEED, GenerationParams
from darkroom.web.submission import Rules, Submission, check

MOST_JOBS = 1000
# Of a thousand wrong jobs nobody reads every error.
MOST_ERRORS = 50
CHOICE = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")
LIMIT = f"1 to {MOST_JOBS} jobs"
FORMS = f"either jobs, a list of {LIMIT}, or matrix, an object of fields"
# What may stand as a list of values to try. A list of loras is one value.
LISTABLE = frozenset(GenerationParams.model_fields) - {"loras"}
ORDER = {name: n for n, name in enumerate(GenerationParams.model_fields)}


def check_batch(body: Mapping[str, Any], rules: Rules, *, job_class: JobClass) -> list[Submission]:
    """Hold every job of a batch to its model's limits. Raises InvalidParameters, each field under its job's number."""
    if len(body) != 1 or not body.keys() <= {"jobs", "matrix"}:
        unknown = [name for name in body if name not in {"jobs", "matrix"}]
        raise InvalidParameters([FieldError(unknown[0] if unknown else "body", "is not a batch", FORMS)])
    if "matrix" in body:
        return [check(each, rules, job_class=job_class) for each in multiply(body["matrix"])]
    return _check_list(body["jobs"], rules, job_class)


def _check_list(bodies: Any, rules: Rules, job_class: JobClass) -> list[Submission]:
    if not isinstance(bodies, list) or not 1 <= len(bodies) <= MOST_JOBS:
        problem = f"has {len(bodies)}" if isinstance(bodies, list) else "is not a list"
        raise InvalidParameters([FieldError("jobs", problem, LIMIT)])
    submissions: list[Submission] = []
    errors: list[FieldError] = []
    for n, body in enumerate(bodies):
        try:
            if not isinstance(body, dict):
                raise InvalidParameters([FieldError("body", "is not an object", "a JSON object of fields")])
            submissions.append(check(body, rules, job_class=job_class))
        except InvalidParameters as error:
            errors += [FieldError(f"jobs[{n}].{each.field}", each.problem, each.limit) for each in error.errors]
        if len(errors) >= MOST_ERRORS:
            break
    if errors:
        raise InvalidParameters(errors[:MOST_ERRORS])
    return submissions


def multiply(matrix: Any) -> Iterator[dict[str, Any]]:
    """Yield a body for every combination, prompts slowest, the others as params.py has them. Raises InvalidParameters.

    Where no seed is named, one is drawn for all of them: the same noise, other words.
    """
    if not isinstance(matrix, dict):
        raise InvalidParameters([FieldError("matrix", "is not an object", FORMS)])
    # The fields of a JSON object have no order.
    fields = sorted(matrix.items(), key=lambda item: ORDER.get(item[0], -1))
    axes = {name: list(_values(name, value)) for name, value in fields}
    num_jobs = prod(sum(num for num, _ in values) for values in axes.values())
    if not 1 <= num_jobs <= MOST_JOBS:
        raise InvalidParameters([FieldError("matrix", f"stands for {num_jobs} jobs", LIMIT)])
    columns = [[each for _, values in axis for each in values] for axis in axes.values()]
    seed = {} if "seed" in matrix else {"seed": secrets.randbelow(MAX_SEED + 1)}
    return ({**seed, **dict(zip(axes, row, strict=True))} for row in product(*columns))


def _values(name: str, value: Any) -> Iterator[tuple[int, Any]]:
    """What one field may be: how many values, and the values, which are made only when they are asked for."""
    for each in value if isinstance(value, list) and name in LISTABLE else [value]:
        if name == "prompt" and isinstance(each, str):
            yield num_prompts(each), prompts(each)
        else:
            yield 1, [each]


def num_prompts(pattern: str) -> int:
    """How many prompts a pattern stands for."""
    return prod(len(choice.split("|")) for choice in CHOICE.findall(pattern))


def prompts(pattern: str) -> Iterator[str]:
    """Every prompt of a pattern: "a {red|blue} house" is two. Braces without a bar stand for themselves."""
    parts = CHOICE.split(pattern)  # text, choice, text, choice, ..., text
    for chosen in product(*(part.split("|") if n % 2 else [part] for n, part in enumerate(parts))):
        yield "".join(chosen)
