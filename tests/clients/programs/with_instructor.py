"""Instructor: answers that are objects."""

from typing import Any, Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from scene import MESSAGES, MODEL, SETTINGS, STEERED, URL, WITH_TOOLS, tell


class Day(BaseModel):
    """How a day was."""

    mood: Literal["good", "bad"]
    reason: str = Field(max_length=40)


def asked(model: str, mode: instructor.Mode) -> dict[str, Any]:
    client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
    settings = SETTINGS | {"max_tokens": 80}
    return client.chat.completions.create(
        model=model, messages=MESSAGES, response_model=Day, max_retries=1, **settings
    ).model_dump()


modes = [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS] if WITH_TOOLS else [instructor.Mode.JSON_SCHEMA]
tell(days=[asked(model, mode) for model in (MODEL, STEERED) for mode in modes])
