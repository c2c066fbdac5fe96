"""How requests are answered that leave it open: what `serve` was started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from localsteer.llama.sampling import Sampling


@dataclass(frozen=True)
class Defaults:
    """What counts where a request says nothing.

    Attributes:
        sampling: how tokens are drawn.
        max_tokens: longest answer; None means as much as the context holds.
        think: whether a model that can think does so before it answers; None: as its chat template says.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    think: bool | None = None
