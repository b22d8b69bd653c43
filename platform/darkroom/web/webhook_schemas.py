"""The shapes of webhooks and of what a picture's file says, for the OpenAPI document. They check nothing."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from darkroom.models import DeliveryState
from darkroom.picture_metadata import PictureParameters
from darkroom.web.queries import DEFAULT_PAGE, LARGEST_PAGE
from darkroom.webhooks.destinations import LONGEST_URL
from darkroom.webhooks.subscriptions import EVENTS

EventName = Literal[EVENTS]  # type: ignore[valid-type]
Secrets = Field(description="whsec_ and the key in base64, for any library of Standard Webhooks.")


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class WebhookRequest(_Told):
    """An address to be told of jobs at."""

    url: str = Field(max_length=LONGEST_URL, examples=["https://example.org/hook"])
    events: list[EventName] = Field(
        [], description="Of which events; without it, how jobs end.", min_length=1, json_schema_extra=_optional
    )


class WebhookChanges(_Told):
    """What is to be different."""

    events: list[EventName] = Field([], min_length=1, json_schema_extra=_optional)
    enabled: bool = Field(True, json_schema_extra=_optional)


class WebhookDocument(_Told):
    """A registered address."""

    id: UUID
    url: str
    events: list[EventName]
    enabled: bool
    created_at: datetime
    disabled_at: datetime | None


class NewWebhook(WebhookDocument):
    """A registered address, with the secret that is shown this once."""

    secret: str = Secrets


class WebhookList(_Told):
    """Every registered address."""

    webhooks: list[WebhookDocument]


class Secret(_Told):
    """What signs."""

    secret: str = Secrets


class DeliveryQuery(BaseModel):
    """Which deliveries."""

    state: DeliveryState | None = Field(None, json_schema_extra=_optional)
    webhook: str | None = Field(None, description="The id of a webhook.", json_schema_extra=_optional)
    job: str | None = Field(None, description="The id of a job.", json_schema_extra=_optional)
    cursor: str | None = Field(None, description="The next_cursor of an earlier page.", json_schema_extra=_optional)
    limit: int = Field(DEFAULT_PAGE, ge=1, le=LARGEST_PAGE)


class DeliveryDocument(_Told):
    """One event on its way to one address. Its id is the webhook-id that the receiver sees."""

    id: UUID
    state: DeliveryState
    type: EventName
    job_id: UUID
    seq: int
    webhook_id: UUID | None = Field(description="None for the address that the job itself names.")
    num_tries: int
    last_status: int | None
    last_error: str | None
    created_at: datetime
    next_at: datetime | None
    ended_at: datetime | None


class DeliveryPage(_Told):
    """The newest deliveries."""

    deliveries: list[DeliveryDocument]
    next_cursor: str | None


class PngInfo(_Told):
    """What a picture's file says of its making: as it stands there, and as far as it was understood."""

    text: str | None
    parameters: PictureParameters
