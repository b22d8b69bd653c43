"""Who asks, and what each route asks of them. Knows HTTP and the rules; knows no job.

Every route carries a rule, beside the line that gives it its address; create_app refuses a route without one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args
from uuid import UUID

from flask import Flask, g

# What a route asks for: nothing, or a key that has the scope of this name.
Rule = Literal["public", "read", "submit", "admin"]
SCOPES = frozenset(get_args(Rule)) - {"public"}

# Without keys there is one owner: whoever reaches the loopback address.
KEYLESS_OWNER = "local"

RULE = "__darkroom_rule__"

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Identity:
    """Who asks. Jobs belong to `owner`, whichever of its keys was shown; `weight` is the share of that key."""

    owner: str
    key_id: UUID | None
    scopes: frozenset[str]
    weight: float = 1.0

    @property
    def is_admin(self) -> bool:
        """Whether the routes of operators are open."""
        return "admin" in self.scopes


KEYLESS = Identity(KEYLESS_OWNER, key_id=None, scopes=SCOPES)


class RouteWithoutRule(AssertionError):
    """A route does not say who may use it."""


def asks(rule: Rule) -> Callable[[View], View]:
    """Say what a route asks for: a decorator right above the view, below the line with its address."""

    def mark(view: View) -> View:
        setattr(view, RULE, rule)
        return view

    return mark


def current() -> Identity:
    """Who sent this request."""
    return cast(Identity, g.identity)


def install(app: Flask) -> None:
    """Find out who asks before every request."""

    @app.before_request
    def identify() -> None:
        g.identity = KEYLESS


def rules_of(app: Flask, *, others: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rule of every endpoint; `others` names those whose views are not ours to mark. Raises RouteWithoutRule."""
    rules: dict[str, Rule] = {}
    for route in app.url_map.iter_rules():
        rule = others.get(route.endpoint) or getattr(app.view_functions[route.endpoint], RULE, None)
        if rule is None:
            raise RouteWithoutRule(f"{route.rule} ({route.endpoint}) does not say who may use it: mark it with asks()")
        rules[route.endpoint] = rule
    return rules
