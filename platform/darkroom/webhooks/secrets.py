"""The secrets that sign, and the signature. Standard Webhooks 1.0, by its own package."""

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime

from standardwebhooks import Webhook

SECRET_BYTES = 32
# For so long after a rotation the earlier secret signs too.
OVERLAP_SECONDS = 86400.0


def new_secret() -> str:
    """Draw a secret."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed_headers(delivery_id: str, body: bytes, *, keys: Iterable[str], at: datetime) -> dict[str, str]:
    """The headers by which a receiver knows who sent the body, when, and whether it was here before."""
    signatures = [Webhook(key).sign(delivery_id, at, body.decode()) for key in keys]
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
