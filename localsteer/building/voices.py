"""The two voices of a contrast: the prompts under which a model takes either pole, and those from which steering begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localsteer.concepts.contrast import Contrast
from localsteer.concepts.descriptions import everyday_questions
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import answer_prompt
from localsteer.vector.calibration import OTHER, POLES, Pole

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Voices:
    """Prompts as tokens, in the same order everywhere: prompt i of each asks the same.

    Attributes:
        own: for each pole the prompts under which the model takes it by itself.
        start: for each pole the prompts from which a vector is to take the model there.
        reach: how far that is, in units of the way from the plain prompt to a pole: 1 from a bare question, 2 from the prompts
            of the other pole, where a contrast has no plain ones.
        spoken: whether the two poles are prompted for at all; otherwise all prompts are bare questions.
    """

    own: Mapping[Pole, Sequence[Tokens]]
    start: Mapping[Pole, Sequence[Tokens]]
    reach: float = 1.0
    spoken: bool = True


def voices(model: Model, contrast: Contrast | None, count: int) -> Voices:
    """The voices of a contrast.

    With personas these are system prompts before its held-out questions (before everyday questions, where it has none), and
    steering begins at the bare question. Prompt files and explicit pairs have no plain prompt: there steering begins at the
    prompts of the other pole. Without a contrast there are everyday questions alone.

    Args:
        model: the model that will read them.
        contrast: the contrast; None for a vector from elsewhere.
        count: how many prompts of each.

    Raises:
        LocalsteerError: a prompt is empty.
        ModelError: the model's template refuses the prompts.
    """
    if contrast is not None and not contrast.personas:
        count = min(count, len(contrast.pairs))
        pairs = [contrast.pairs[number * len(contrast.pairs) // count] for number in range(count)]
        own: dict[Pole, list[Tokens]] = {
            "positive": [tuple(model.tokenize(pair.positive.render(model))) for pair in pairs],
            "negative": [tuple(model.tokenize(pair.negative.render(model))) for pair in pairs],
        }
        return Voices(own, {pole: own[OTHER[pole]] for pole in POLES}, reach=2.0)
    questions = contrast.held_out if contrast is not None and contrast.held_out else everyday_questions()
    asked = [Message("user", questions[number % len(questions)]) for number in range(count)]
    bare = [answer_prompt(model, [question]) for question in asked]
    start: dict[Pole, list[Tokens]] = dict.fromkeys(POLES, bare)
    if contrast is None:
        return Voices(start, start, spoken=False)

    def under(place: int) -> list[Tokens]:
        systems = [pair[place] for pair in contrast.personas]
        return [
            answer_prompt(model, [Message("system", systems[number % len(systems)]), question])
            for number, question in enumerate(asked)
        ]

    return Voices({pole: under(place) for place, pole in enumerate(POLES)}, start)
