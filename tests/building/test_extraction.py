from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.building import extraction
from localsteer.building.extraction import ExtractionSettings, default_position, extract, layer_summary
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.engine.request import Answer, Timing
from localsteer.errors import ContrastError, LocalsteerError, ModelError
from localsteer.llama.chat_template import Message
from localsteer.llama.fingerprint import hash_texts
from localsteer.llama.model import Model
from localsteer.reading import activations
from localsteer.reading.rows import Means, Progress
from localsteer.reading.span import Span
from localsteer.vector.file import read_vector, write_vector
from tests.conftest import Floats, TinyModel, run_alone
from tests.tiny_models import CHATML_TEMPLATE, write_tiny_model

TOPICS = ("rain", "the sea", "my cat", "old books", "the inn", "bread")
# Alike but for a word near the end, so even a random model tells the two sides apart in one consistent way.
POSITIVE = tuple(f"About {topic} I feel happy." for topic in TOPICS)
NEGATIVE = tuple(f"About {topic} I feel awful." for topic in TOPICS)


def contrast_of(positive: Sequence[str], negative: Sequence[str]) -> Contrast:
    pairs = tuple(Pair(Prompt((), one), Prompt((), other)) for one, other in zip(positive, negative, strict=True))
    return Contrast("happy", "How it feels.", "happy", "awful", pairs, source="name: happy\n")


HAPPY = contrast_of(POSITIVE, NEGATIVE)
UNDOSED = ExtractionSettings(dose=False)


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def last_rows(model: Model, texts: Sequence[str]) -> Floats:
    """What every block gives at the last token, (n_texts, n_layer, n_embd)."""
    return np.stack([[rows[-1] for rows in run_alone(model, model.tokenize(text)).rows] for text in texts])


# What is read


def test_a_direction_is_the_mean_difference_at_its_share_of_the_dose(steerable: Model) -> None:
    vector = extract(steerable, HAPPY, UNDOSED)
    assert vector.layers == (1, 2, 3)
    hidden_norm, estimate = vector.provenance.hidden_norm, vector.provenance.estimate
    assert hidden_norm is not None
    assert estimate is not None
    positive, negative = last_rows(steerable, POSITIVE), last_rows(steerable, NEGATIVE)
    differences = positive.mean(axis=0) - negative.mean(axis=0)
    norms = np.linalg.norm(np.concatenate([positive, negative]), axis=2).mean(axis=0)
    for layer in vector.layers:
        assert cosine(vector.directions[layer], differences[layer]) > 0.999
        assert np.linalg.norm(vector.directions[layer]) == pytest.approx(norms[layer] / 3, rel=0.01)
        assert hidden_norm[layer] == pytest.approx(norms[layer], rel=0.01)
        assert np.linalg.norm(estimate[layer] - differences[layer]) < 0.05 * np.linalg.norm(differences[layer])


def test_the_principal_component_points_the_same_way(steerable: Model) -> None:
    mean = extract(steerable, HAPPY, ExtractionSettings(dose=False, method="mean"))
    first = extract(steerable, HAPPY, ExtractionSettings(dose=False, method="pca"))
    assert first.provenance.method == "pca"
    for layer in mean.layers:
        assert cosine(first.directions[layer], mean.directions[layer]) > 0.9
        assert np.linalg.norm(first.directions[layer]) == pytest.approx(np.linalg.norm(mean.directions[layer]), rel=1e-3)


def test_each_method_is_its_own(tiny: Model) -> None:
    positive = [f"I feel {word}" for word in ("happy", "glad", "merry", "jolly", "fine", "sunny")]
    negative = [f"I feel {word}" for word in ("awful", "sad", "weary", "gloomy", "low", "grey")]
    differences = (last_rows(tiny, positive) - last_rows(tiny, negative))[:, 2]
    found = {
        method: extract(
            tiny, contrast_of(positive, negative), ExtractionSettings(dose=False, method=method, layers=(2, 2))
        ).directions[2]
        for method in ("mean", "pca")
    }
    assert cosine(found["mean"], differences.mean(axis=0)) > 0.999
    assert abs(cosine(found["pca"], np.linalg.svd(differences)[2][0])) > 0.999
    assert 0 < cosine(found["mean"], found["pca"]) < 0.99


def median_difference(positive: Floats, negative: Floats) -> Floats:
    """An estimator of a user's own."""
    return np.asarray(3 * np.median(positive - negative, axis=0), np.float32)


def test_a_function_of_ones_own_is_a_method(tiny: Model, tmp_path: Path) -> None:
    vector = extract(tiny, HAPPY, ExtractionSettings(dose=False, method=median_difference))
    expected = median_difference(last_rows(tiny, POSITIVE), last_rows(tiny, NEGATIVE))
    mean = extract(tiny, HAPPY, UNDOSED)
    assert vector.provenance.estimate is not None
    for layer in vector.layers:
        assert cosine(vector.directions[layer], expected[layer]) > 0.999
        assert np.linalg.norm(vector.provenance.estimate[layer]) == pytest.approx(np.linalg.norm(expected[layer]), rel=0.05)
        # Its dose is that of any other.
        assert np.linalg.norm(vector.directions[layer]) == pytest.approx(np.linalg.norm(mean.directions[layer]), rel=1e-3)
    write_vector(vector, tmp_path / "own.gguf")
    assert read_vector(tmp_path / "own.gguf").provenance.method == "median_difference"


def test_a_method_that_gives_no_direction_a_layer_is_an_error_that_names_it(tiny: Model) -> None:
    def one_for_all(positive: Floats, negative: Floats) -> Floats:
        return np.asarray((positive - negative).mean(axis=(0, 1)), np.float32)

    def nothing(positive: Floats, _negative: Floats) -> Floats:
        return np.full(positive.shape[1:], np.nan, np.float32)

    for method in (one_for_all, nothing):
        with pytest.raises(LocalsteerError, match=rf'method "{method.__name__}".*Let it give one direction a layer'):
            extract(tiny, HAPPY, ExtractionSettings(dose=False, method=method))


def test_turning_the_poles_turns_the_direction(tiny: Model) -> None:
    for method in ("mean", "pca"):
        settings = ExtractionSettings(dose=False, method=method)
        there, back = extract(tiny, HAPPY, settings), extract(tiny, contrast_of(NEGATIVE, POSITIVE), settings)
        for layer in there.layers:
            np.testing.assert_allclose(there.directions[layer], -back.directions[layer], atol=1e-4)


MOOD = parse_concept(
    """
    name: mood
    poles: {positive: glad, negative: sad}
    template: "Be {persona}."
    personas: {positive: [glad, merry], negative: [gloom, weary]}
    questions: ["Who?", "Why?"]
    openings: [I think that, {positive: "We:", negative: We all are}]
    """,
    "mood.yaml",
)


def read_spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """What is read from now on."""
    read: list[Span] = []

    def reading(model: Model, spans: Sequence[Span], layers: Sequence[int], progress: Progress | None = None) -> Means:
        read.extend(spans)
        return activations.read_activations(model, spans, layers, progress)

    monkeypatch.setattr(extraction, "read_activations", reading)
    return read


def mood_rows(model: Model) -> list[tuple[Floats, Floats]]:
    """For each pole (n, n_embd) of block 2, what it gives at the last token, and its mean from the one before the opening on."""
    sides = []
    for personas, second in ((("glad", "merry"), "We:"), (("gloom", "weary"), "We all are")):
        last, means = [], []
        for persona in personas:
            for question, opening in (("Who?", "I think that"), ("Why?", second)):
                turns = (f"system\nBe {persona}.", f"user\n{question}")
                before = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
                rows = run_alone(model, model.tokenize(before + opening)).rows[2]
                last.append(rows[-1])
                means.append(rows[len(model.tokenize(before)) - 1 :].mean(axis=0))
        sides.append((np.stack(last), np.stack(means)))
    return sides


def test_prompts_go_through_the_models_chat_template_and_the_opening_of_the_answer_is_read(tiny: Model) -> None:
    (last, means), (other_last, other_means) = mood_rows(tiny)
    opening = extract(tiny, MOOD, ExtractionSettings(dose=False, layers=(2, 2)))
    assert opening.provenance.position == "opening"
    assert cosine(opening.directions[2], means.mean(axis=0) - other_means.mean(axis=0)) > 0.99
    one = extract(tiny, MOOD, ExtractionSettings(dose=False, layers=(2, 2), position="last"))
    assert one.provenance.position == "last"
    assert cosine(one.directions[2], last.mean(axis=0) - other_last.mean(axis=0)) > 0.99
    assert cosine(one.directions[2], opening.directions[2]) < 0.95


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, None])
def test_the_opening_is_read_from_the_token_that_predicts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    read = read_spans(monkeypatch)
    with Model(write_tiny_model(tmp_path / "tiny.gguf", chat_template=template), threads=1) as model:
        extract(model, MOOD, ExtractionSettings(dose=False, layers=(1, 3)))
        openings = [prompt.opening for prompt in MOOD.prompts()]
        assert len(set(openings)) == 3
        for span, opening in zip(read, openings, strict=True):
            first, *rest = (span.tokens[place] for place in span.places)
            assert model.detokenize(rest) == opening
            assert model.token_bytes(first).endswith(b"\n")


def test_where_blanks_stand_together_with_the_opening_it_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that belongs to both is read, and the one that predicts it."""
    read = read_spans(monkeypatch)
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as model:
        joined = {"\n\nI": 7, "Who?": 8, " am": 9}
        monkeypatch.setattr(
            Model, "tokenize", lambda _model, text: [joined[part] for part in ("Who?", "\n\nI", " am") if part in text]
        )
        monkeypatch.setattr(Model, "token_bytes", lambda _model, token, **_: {v: k.encode() for k, v in joined.items()}[token])
        user = (Message("user", "Who?"),)
        pairs = tuple(Pair(Prompt(user, "I am"), Prompt(user, "I am")) for _ in range(2))
        with pytest.raises(ContrastError, match="identical"):
            extract(model, replace(HAPPY, pairs=pairs), ExtractionSettings(position="opening", dose=False, layers=(1, 3)))
    assert [tuple(span.tokens[place] for place in span.places) for span in read] == [(8, 7, 9)] * 4


def test_templated_text_is_read_as_its_messages_are(tiny: Model) -> None:
    texts = [[prompt.render(tiny) for prompt in (pair.positive, pair.negative)] for pair in MOOD.pairs]
    settings = ExtractionSettings(dose=False, layers=(1, 3))
    found, same = extract(tiny, contrast_of(*zip(*texts, strict=True)), settings), extract(tiny, MOOD, settings)
    for layer in found.layers:
        np.testing.assert_array_equal(found.directions[layer], same.directions[layer])


def test_text_in_which_only_another_turn_has_a_header_is_read_behind_the_last_one(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_spans(monkeypatch)
    header = "<|im_end|>\n<|im_start|>assistant\n"
    before = f"<|im_start|>user\nWho?{header}Me.<|im_end|>\n<|im_start|>user\nWhy?{header}"
    raw = contrast_of([before + text for text in POSITIVE], [before + text for text in NEGATIVE])
    extract(tiny, raw, UNDOSED)
    for span, text in zip(read, (*POSITIVE, *NEGATIVE), strict=True):
        assert tiny.detokenize([span.tokens[place] for place in span.places][1:]) == text


def test_of_plain_text_it_is_the_last_token_that_is_read(tiny: Model) -> None:
    found, last = (extract(tiny, HAPPY, ExtractionSettings(dose=False, position=where)) for where in ("opening", "last"))
    for layer in found.layers:
        np.testing.assert_array_equal(found.directions[layer], last.directions[layer])


def test_the_opening_is_read_where_each_pole_has_its_own(tiny: Model) -> None:
    assert default_position(tiny, MOOD) == "opening"
    assert default_position(tiny, HAPPY) == "last"
    alike = replace(MOOD, pairs=tuple(pair for pair in MOOD.pairs if pair.positive.opening == pair.negative.opening))
    assert default_position(tiny, alike) == "last"
    for contrast, position in ((MOOD, "opening"), (HAPPY, "last")):
        assert extract(tiny, contrast, ExtractionSettings(dose=False, layers=(1, 3))).provenance.position == position
    # So it is in text that is templated already, whatever else the prompts differ in.
    for some, position in ((MOOD, "opening"), (alike, "last")):
        texts = zip(*([pair.positive.render(tiny), pair.negative.render(tiny)] for pair in some.pairs), strict=True)
        assert default_position(tiny, contrast_of(*texts)) == position


# Where a vector comes from


def test_a_vector_says_where_it_comes_from(tiny: Model) -> None:
    provenance = extract(tiny, HAPPY, UNDOSED).provenance
    assert (provenance.concept, provenance.description) == ("happy", "How it feels.")
    assert (provenance.positive, provenance.negative) == ("happy", "awful")
    assert (provenance.method, provenance.position, provenance.n_pairs) == ("mean", "last", 6)
    assert provenance.model == tiny.fingerprint
    assert provenance.source == "name: happy\n"
    assert provenance.dataset_sha256 == hash_texts(text.encode() for text in (*POSITIVE, *NEGATIVE))
    for measured in (provenance.reliability, provenance.hidden_norm):
        assert measured is not None
        assert measured.shape == (4,)
        assert np.isnan(measured[0])
        assert (measured[1:] > 0).all()


# Layers


def test_the_middle_half_of_the_layers_is_steered_and_the_last_block_not_even_read(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "deep.gguf", n_layer=12, n_embd=32), threads=1) as model:
        vector = extract(model, HAPPY, UNDOSED)
        assert vector.layers == tuple(range(3, 10))
        assert vector.provenance.hidden_norm is not None
        assert np.isfinite(vector.provenance.hidden_norm).tolist() == [False] + [True] * 10 + [False]
        assert layer_summary(vector) == "3-9 of 12"
        # Seven equal shares of a relative dose of 1.
        for layer in vector.layers:
            share = np.linalg.norm(vector.directions[layer]) / vector.provenance.hidden_norm[layer]
            assert share == pytest.approx(1 / 7, rel=1e-4)


@pytest.mark.parametrize("layers", [(1, 1), (2, 3), (1, 3)])
def test_layers_that_are_asked_for_are_steered(tiny: Model, layers: tuple[int, int]) -> None:
    vector = extract(tiny, HAPPY, ExtractionSettings(dose=False, layers=layers))
    assert vector.layers == tuple(range(layers[0], layers[1] + 1))
    assert vector.n_embd == tiny.n_embd


@pytest.mark.parametrize("layers", [(0, 2), (2, 4), (3, 2), (-1, 2)])
def test_layers_that_the_model_does_not_have_are_an_error(tiny: Model, layers: tuple[int, int]) -> None:
    with pytest.raises(LocalsteerError, match=rf"Layers {layers[0]}-{layers[1]} cannot be steered: tiny has layers 1-3"):
        extract(tiny, HAPPY, ExtractionSettings(dose=False, layers=layers))


# Contrasts that are none


def test_two_sides_that_are_identical_are_an_error(steerable: Model) -> None:
    with pytest.raises(ContrastError, match="do not differ in any consistent way"):
        extract(steerable, contrast_of(POSITIVE, POSITIVE), UNDOSED)


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_two_sides_that_are_identical_at_the_layers_asked_for_are_an_error(tiny: Model, method: str) -> None:
    with pytest.raises(ContrastError, match="identical at layer 2"):
        extract(tiny, contrast_of(POSITIVE, POSITIVE), ExtractionSettings(dose=False, method=method, layers=(2, 3)))


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_pairs_that_contradict_each_other_are_an_error(tiny: Model, method: str) -> None:
    half = len(TOPICS) // 2
    mixed = contrast_of((*POSITIVE[:half], *NEGATIVE[half:]), (*NEGATIVE[:half], *POSITIVE[half:]))
    with pytest.raises(ContrastError, match=r"do not differ in any consistent way.*more pairs"):
        extract(tiny, mixed, ExtractionSettings(dose=False, method=method))


def test_an_empty_prompt_is_an_error(tiny: Model) -> None:
    with pytest.raises(ContrastError, match="Prompt 8 is empty"):
        extract(tiny, contrast_of(POSITIVE, (NEGATIVE[0], "", *NEGATIVE[2:])))


def test_an_unknown_method_is_an_error(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match=r'no method "median".*mean, pca'):
        extract(tiny, HAPPY, ExtractionSettings(dose=False, method="median"))


def test_a_model_that_hides_its_residual_stream_is_an_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="does not show the residual stream"):
        extract(tiny_model("plamo2"), HAPPY)


# Reading the response


def test_the_response_is_what_the_model_itself_answers(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_spans(monkeypatch)
    monkeypatch.setattr(extraction, "RESPONSE_TOKENS", 10)
    settings = ExtractionSettings(dose=False, position="response", layers=(1, 3))
    vector = extract(tiny, HAPPY, settings)
    prompts = [tuple(tiny.tokenize(text)) for text in (*POSITIVE, *NEGATIVE)]
    assert len(read) == len(prompts)
    for span, prompt in zip(read, prompts, strict=True):
        assert span.tokens[: span.places.start] == prompt
        assert len(span.tokens) == len(prompt) + 10
    assert vector.provenance.position == "response"
    assert cosine(vector.directions[2], extract(tiny, HAPPY, UNDOSED).directions[2]) < 0.99
    again = extract(tiny, HAPPY, settings)
    for layer in vector.layers:
        np.testing.assert_array_equal(again.directions[layer], vector.directions[layer])


def test_every_architectures_response_can_be_read(steerable: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "RESPONSE_TOKENS", 10)
    vector = extract(
        steerable, contrast_of(POSITIVE[:2], NEGATIVE[:2]), ExtractionSettings(dose=False, position="response", layers=(2, 3))
    )
    assert vector.layers == (2, 3)
    assert all(np.isfinite(direction).all() for direction in vector.directions.values())


def test_progress_tells_answering_and_reading_to_their_ends(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "RESPONSE_TOKENS", 10)
    told: list[tuple[str, int, int]] = []
    contrast = contrast_of(POSITIVE[:4], NEGATIVE[:4])
    extract(
        tiny, contrast, ExtractionSettings(dose=False, position="response", layers=(1, 3)), progress=lambda *now: told.append(now)
    )
    assert list(dict.fromkeys(name for name, _, _ in told)) == ["answering", "reading"]
    for what in ("answering", "reading"):
        counts = [(done, total) for name, done, total in told if name == what]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1] > 0
    assert ("answering", 8, 8) in told


def test_a_model_that_says_nothing_has_no_response_to_read(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = Answer("", (), "stop", 0, Timing(1, 0, 0.1, 0, 0.0))
    monkeypatch.setattr(extraction, "generate_many", lambda model, requests, on_progress: [silence] * len(requests))
    with pytest.raises(ContrastError, match=r"no answer to prompt 1 \(of 12\).*--position last"):
        extract(tiny, HAPPY, ExtractionSettings(dose=False, position="response"))
