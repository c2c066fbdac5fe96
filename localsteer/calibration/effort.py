"""How many answers a calibration samples, and at which doses."""

from __future__ import annotations

from dataclasses import dataclass

from localsteer.vector.calibration import POLES, Mode

# Times the dose that was measured by teacher forcing. It is believed so far: strength 1 is no stronger than the last of them.
# Where the cost alone decided, two seeds gave 0.48 and 0.63 (happy, SmolLM2-135M); the teacher-forced doses were 0.29 and 0.25.
# Tried once, with 2.5 as well where the text held at 1.6: seven sides of six concepts there (confident, calm, honest, creative,
# cautious, polite) got 1.2 to 1.6 times the dose and cost 0.05 to 0.5 nats more, for a swing of an independent instrument that
# changed by -1.2 to 1.2, and for answers as "The capital of Spain is Spain".
FACTORS = (0.6, 1.0, 1.6)
# Times the dose found for the response. Answers that are steered with their prompt are sampled at its dose alone.
ANCHORED = (1.0, 1.5, 2.2)


@dataclass(frozen=True)
class Effort:
    """Numbers of answers.

    Attributes:
        max_tokens: longest answer.
        unsteered: without steering.
        persona: under each pole's persona.
        curve: at each dose toward each pole.
        prompt: toward each pole with the prompt steered.
        anchored: at each dose of anchored answers toward each pole, where these are asked for.
    """

    max_tokens: int
    unsteered: int
    persona: int
    curve: int
    prompt: int
    anchored: int

    def count(self, mode: Mode) -> int:
        """Answers at each dose."""
        return {"response": self.curve, "prompt": self.prompt, "anchored": self.anchored}[mode]

    def answers(self, *, personas: bool, anchored: bool) -> int:
        """How many answers a calibration takes."""
        steered = self.curve * len(FACTORS) + self.prompt + (self.anchored * len(ANCHORED) if anchored else 0)
        return self.unsteered + len(POLES) * (steered + (self.persona if personas else 0))


# 94 answers of 18 tokens: under a minute on SmolLM2-135M (2 cores). The first tokens tell most of a tone, and the intervals of
# the effect come from all doses together.
THOROUGH = Effort(max_tokens=18, unsteered=12, persona=10, curve=9, prompt=4, anchored=12)
QUICK = Effort(max_tokens=14, unsteered=8, persona=6, curve=5, prompt=2, anchored=5)
