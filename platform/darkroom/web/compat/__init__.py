"""The APIs that people's clients speak already, over the same jobs: OpenAI, AUTOMATIC1111, Hugging Face, Replicate.

They stay out of the OpenAPI document: each protocol is described by its own makers. docs/compatibility.md says what of
it is taken.
"""

from darkroom.web.compat import a1111, hugging_face, openai, replicate
from darkroom.web.compat.calls import aliases

BLUEPRINTS = (openai.blueprint, a1111.blueprint, hugging_face.blueprint, replicate.blueprint)

__all__ = ["BLUEPRINTS", "aliases"]
