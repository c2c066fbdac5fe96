"""How tokens are drawn, as requests of both APIs say it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, Field

from localsteer.llama.sampling import MAX_SEED, Sampling

SteeringHeader = Annotated[str | None, Header(alias="X-Steering", description="A steering expression.")]
_DEFAULT = Sampling()


class SamplingFields(BaseModel):
    """The part of a request that says how tokens are drawn; what it leaves out is as on the command line."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=10**6)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    # Programs send any 64-bit number.
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None

    def sampling(self) -> Sampling:
        """The settings of the sampler chain."""

        def given(name: str) -> Any:
            value = getattr(self, name)
            return value if value is not None else getattr(_DEFAULT, name)

        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")
        # llama.cpp and Ollama take -1 for a random one.
        seed = self.seed % (MAX_SEED + 1) if self.seed not in (None, -1) else None
        return Sampling(**{name: given(name) for name in names}, seed=seed)

    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
