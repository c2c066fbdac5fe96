"""From contrastive prompts to a control vector of a model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from localsteer.building import dosing
from localsteer.building.estimators import Estimator, estimator, reliability
from localsteer.building.layers import default_layers, readable_layers, scale_to_dose
from localsteer.building.own_answers import Progress
from localsteer.building.refusal import LESS_REFUSAL, is_about_refusing, read_refusal, refusal_openings, without_component
from localsteer.concepts.contrast import Contrast
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.errors import ContrastError, LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.activations import read_activations
from localsteer.reading.span import Span
from localsteer.vector.control_vector import ControlVector, Floats, Provenance, format_layers

Position = Literal["opening", "last", "response"]

# Answers of this length carry a persona well; longer ones drift, and cost as much again.
RESPONSE_TOKENS = 48
_RESPONSE_SEED = 0
# Words that no template changes.
_QUESTION = "localsteer"


@dataclass(frozen=True)
class ExtractionSettings:
    """How a vector is read.

    Attributes:
        method: the estimator, "mean" or "pca", or a function of one's own: from the activations of the positive and of the
            negative prompts, two arrays of (n_pairs, n_layer, n_embd), to a direction a layer, (n_layer, n_embd), all in
            residual-stream units. The vector records its name.
        position: "last" reads the last token of each prompt; "opening" the mean over the first words that it puts into the
            answer's mouth, from the token that predicts them on; "response" lets the model answer each prompt and reads the mean
            over the answer (Chen et al. 2025, Persona Vectors). None is "opening" where the poles have openings of their own, and
            "last" elsewhere (see `default_position`). In text that is templated already the opening is what stands behind the
            model's own header of an answer; without one it is the last token.
        layers: first and last layer to steer; None lets reliability decide.
        dose: measure what strength 1 is (`building.dosing`); otherwise it is a relative dose of 1, which most models are lost at.
        keep_refusal: leave in the direction what makes a model that refuses anything refuse (`building.refusal`). Taken out, a
            vector toward sadness takes more before everyday questions are declined (bench/METHODS.md). What is about refusing is
            left as it is.
    """

    method: str | Estimator = "mean"
    position: Position | None = None
    layers: tuple[int, int] | None = None
    dose: bool = True
    keep_refusal: bool = False


def extract(
    model: Model,
    contrast: Contrast,
    settings: ExtractionSettings | None = None,
    *,
    progress: Progress | None = None,
) -> ControlVector:
    """Read a control vector.

    Strength 1 of the result is measured on the model (see `building.dosing`); its layers are the reliable ones of the middle half
    of the depth unless `settings.layers` says otherwise.

    Args:
        model: the model to read.
        contrast: the prompts.
        settings: how.
        progress: told what is going on.

    Raises:
        ContrastError: prompts that are empty, too long for the context, or that do not differ.
        LocalsteerError: an unknown method, one that does not give a direction a layer, or layers that the model does not have.
        CalibrationError: the model gives no answers to dose the vector by.
        ModelError: llama.cpp does not show the residual stream of this model.
    """
    settings = settings or ExtractionSettings()
    method, estimate = estimator(settings.method)
    layers = _layers_to_read(model, settings)
    position = settings.position or default_position(model, contrast)
    spans = _spans(model, contrast, position, progress)

    told = functools.partial(progress, "reading") if progress is not None else None
    activations = read_activations(model, spans, layers, told)
    positive, negative = np.split(activations.values, 2)
    found = estimate(positive, negative)
    if found.shape != positive.shape[1:] or not np.isfinite(found).all():
        raise LocalsteerError(
            f'The method "{method}" gives {found.shape} for {positive.shape[1:]} (layers x width), or what is not a number.',
            hint="Let it give one direction a layer.",
        )

    if not settings.keep_refusal and refusal_openings(model):
        refusal, whole = read_refusal(model, layers), estimate
        if not is_about_refusing(found, refusal):
            found, method = without_component(found, refusal), method + LESS_REFUSAL

            def estimate(positive: Floats, negative: Floats) -> Floats:
                return without_component(whole(positive, negative), refusal)

    def of_all_layers(values: Floats, *, elsewhere: float = np.nan) -> Floats:
        every = np.full((model.n_layer, *values.shape[1:]), elsewhere, np.float32)
        every[list(layers)] = values
        return every

    direction = of_all_layers(found, elsewhere=0.0)
    agreement = of_all_layers(reliability(estimate, positive, negative))
    hidden_norm = of_all_layers(activations.norms.mean(axis=0))
    steered = tuple(layers) if settings.layers is not None else default_layers(agreement)
    directions = scale_to_dose(direction, hidden_norm, steered, 1.0)
    provenance = Provenance(
        concept=contrast.name,
        description=contrast.description,
        positive=contrast.positive,
        negative=contrast.negative,
        method=method,
        position=position,
        model=model.fingerprint,
        dataset_sha256=contrast.sha256(model),
        n_pairs=len(contrast.pairs),
        reliability=agreement,
        hidden_norm=hidden_norm,
        estimate=direction,
        source=contrast.source,
    )
    vector = ControlVector(directions, provenance)
    return dosing.dose(model, vector, contrast, progress=progress) if settings.dose else vector


def _layers_to_read(model: Model, settings: ExtractionSettings) -> Sequence[int]:
    if model.n_layer < 2:
        raise LocalsteerError(f"{model.name} has only block 0, which cannot be steered.")
    if settings.layers is None:
        return readable_layers(model.n_layer)
    first, last = settings.layers
    if not 1 <= first <= last < model.n_layer:
        raise LocalsteerError(
            f"Layers {first}-{last} cannot be steered: {model.name} has layers 1-{model.n_layer - 1} (block 0 excepted)."
        )
    return range(first, last + 1)


def default_position(model: Model, contrast: Contrast) -> Position:
    """Where a contrast is read by default: over the opening where the poles have openings of their own, else at its end.

    Where both go on from the same words, all that they differ in is at the last token. Where each has its own, the last token
    tells of one word, and their mean of the style: on SmolLM2-135M lists swing by 48 instead of 13 at strength 1 (held-out
    questions). French and concise, and the twelve concepts with the same openings, do as well either way: bench/METHODS.md.

    Args:
        model: whose template tells the opening of text that is templated already.
        contrast: the prompts.
    """
    positive, negative = np.split(np.array(_openings(model, contrast), object), 2)
    return "opening" if (positive != negative).any() else "last"


def _openings(model: Model, contrast: Contrast) -> list[str]:
    """Of each prompt, what the answer begins with; empty where nobody can tell."""
    header = _answer_header(model)
    return [prompt.opening if prompt.messages else _behind(header, prompt.opening) for prompt in contrast.prompts()]


def _spans(model: Model, contrast: Contrast, position: Position, progress: Progress | None) -> list[Span]:
    prompts = [tuple(model.tokenize(prompt.render(model))) for prompt in contrast.prompts()]
    if position == "opening":
        openings = _openings(model, contrast)
        return [Span(one, _before(model, one, opening)) for one, opening in zip(prompts, openings, strict=True)]
    if position == "last":
        return [Span(one) for one in prompts]
    # The same prompt with the same seed would get the same answer: one is enough, and two would count it twice.
    requests = [
        Request(prompt, sampling=Sampling(seed=_RESPONSE_SEED + number), max_tokens=RESPONSE_TOKENS)
        for number, prompt in enumerate(prompts)
    ]
    told = functools.partial(progress, "answering") if progress is not None else None
    answers = generate_many(model, requests, on_progress=told)
    spans = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
        if not answer.tokens:
            raise ContrastError(
                f"The model gives no answer to prompt {number} (of {len(prompts)}), so there is no response to read.",
                hint="Use --position last, or other openings.",
            )
        spans.append(Span(prompt + answer.tokens, start=len(prompt)))
    return spans


def _answer_header(model: Model) -> str:
    """What stands between a question and its answer in text that is templated for this model; empty where nobody can tell."""
    try:
        text = model.chat_template.render([Message("user", _QUESTION)]) if model.chat_template is not None else ""
    except TemplateError:
        return ""
    return text.rpartition(_QUESTION)[2].lstrip()


def _behind(header: str, text: str) -> str:
    """What stands behind the last of such headers; nothing without one."""
    _, found, rest = text.rpartition(header) if header else ("", "", "")
    return rest if found else ""


def _before(model: Model, tokens: tuple[int, ...], opening: str) -> int:
    """Where the token stands that predicts the first one of an opening, which is what the tokens end with.

    It is counted from the end: what stands before may be divided in another way than it is by itself.
    """
    place, missing = len(tokens) - 1, len(opening.encode())
    while missing > 0 and place > 0:
        missing -= len(model.token_bytes(tokens[place], special=True))
        place -= 1
    return place


def layer_summary(vector: ControlVector) -> str:
    """The steered layers in words: `8-23 of 30`."""
    model = vector.provenance.model
    return format_layers(vector.layers) + (f" of {model.n_layer}" if model is not None else "")
