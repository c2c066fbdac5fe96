from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.llama.model import Model
from localsteer.llama.sampling import MAX_SEED
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.calibration.made import DOSES, calibrated_on
from tests.commands.runner import CONCEPT, assert_one_clear_line, run
from tests.tiny_models import CHATML_TEMPLATE, UNSTEERABLE_ARCHITECTURE, write_tiny_model

TinyPath = Callable[[str], Path]


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    directions = {layer: generator.standard_normal(64).astype(np.float32) * 5 for layer in (1, 2)}
    path = tmp_path / "push.gguf"
    write_vector(ControlVector(directions), path)
    return path


def test_json_holds_what_the_design_promises(tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", f"0.5 {vector}", "-n", "6", "--seed", "3", "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["steering"] == f"0.5 {vector}"
    assert document["seed"] == 3
    assert document["finish_reason"] == "length"
    assert len(document["tokens"]) == 6
    assert document["timing"]["tokens_per_second"] > 0
    assert document["timing"]["prompt_tokens_per_second"] > 0
    assert document["policy"] == []
    assert "unsteered" not in document


def test_steerings_given_one_by_one_add_up(tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "6", "--seed", "3", "--json")
    apart = run(capfd, *common, "-s", f"0.5 {vector}", "-s", f"-0.2 {vector}@2-2").document
    joined = run(capfd, *common, "-s", f"0.5 {vector} - 0.2 {vector}@2-2").document
    assert apart["steering"] == joined["steering"]
    assert apart["tokens"] == joined["tokens"]


def test_an_equals_sign_behind_the_short_option_is_no_part_of_the_expression(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "2", "--json")
    assert run(capfd, *common, f"-s=-0.5 {vector}").document["steering"] == f"-0.5 {vector}"


def test_where_no_dose_can_be_told_the_last_line_says_by_what_it_was_steered(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", f"!{vector}", "-n", "2")
    assert f", steered by !{vector}, seed" in result.err


def test_an_answer_that_loops_says_what_keeps_it_from_that(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without chance a model of random weights soon says the same again.
    command = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "160", "--temperature", "0")
    plain, steered = run(capfd, *command).err, run(capfd, *command, "-s", vector).err
    assert "An answer repeats itself at its end: --repeat-penalty 1.1 keeps it from that." in plain
    assert "keeps it from that, and so does less strength; `localsteer calibrate VECTOR --long" in steered
    assert run(capfd, *command, "--json").document["loops"] is True
    assert "repeats itself" not in run(capfd, *command[:-2], "--seed", "1").err


def test_the_seed_that_is_reported_gives_the_same_answer_again(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-n", "12", "--json").document
    again = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-n", "12", "--seed", str(first["seed"]), "--json").document
    other = run(
        capfd, "generate", "Hello", "-m", tiny_path("llama"), "-n", "12", "--seed", str(first["seed"] + 1), "--json"
    ).document
    assert again["tokens"] == first["tokens"] != other["tokens"]


def test_compare_answers_three_ways_as_each_alone(tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "8", "--seed", "3", "--json")
    compared = run(capfd, *common, "-s", vector, "--compare").document
    steered = run(capfd, *common, "-s", vector).document
    opposite = run(capfd, *common, "-s", f"-{vector}").document
    unsteered = run(capfd, *common).document
    assert compared["tokens"] == steered["tokens"]
    assert compared["unsteered"]["tokens"] == unsteered["tokens"]
    assert compared["opposite"]["tokens"] == opposite["tokens"]
    assert len({tuple(one["tokens"]) for one in (steered, opposite, unsteered)}) == 3


def test_compared_unsteered_is_not_anchored(tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "8", "--seed", "3", "--json", "--anchored")
    compared = run(capfd, *common, "-s", vector, "--compare").document
    assert [compared["anchored"], *(compared[way]["anchored"] for way in ("opposite", "unsteered"))] == [True, True, False]


def test_compare_shows_all_three_texts(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vector.parent)  # a title must fit its column
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", vector.name, "-n", "4", "--compare")
    assert result.code == 0
    assert result.out.count("unsteered") == 1
    assert result.out.count("push.gguf") >= 2


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A concept of the user's, whose vector is not built yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "localsteer" / "vectors" / "loud"
    folder.mkdir(parents=True)
    # Three pairs are too few to measure a reliability, which a model with random weights would not have.
    few = (
        CONCEPT.replace(", a shouting man", "").replace(", a whispering man", "").replace(', "In the house", "My", "All of"', "")
    )
    (folder / "concept.yaml").write_text(few)
    return "loud"


def test_the_first_use_of_a_name_tells_what_its_vector_is_worth_and_the_second_does_not_wait(
    tiny_path: TinyPath, unbuilt: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "Hello", "-m", tiny_path("llama"), "-s", unbuilt, "-n", "2")
    first, second = run(capfd, *command), run(capfd, *command)
    assert (first.code, second.code) == (0, 0), first.err
    assert "loud was built for tiny in " in first.err
    # A model of random weights knows nothing of loud and quiet.
    assert "+1 loud: nothing beyond chance was seen." in first.err
    assert "-1 quiet: nothing beyond chance was seen." in first.err
    assert "was built" not in second.err
    assert first.err.count("loud: nothing beyond chance was seen.") == 1
    assert "loud: nothing beyond chance was seen." in second.err


def test_compare_tells_the_dose_and_what_it_is_worth_either_way(
    tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "Hello", "-m", tiny_path("llama"), "-s", loud, "-n", "2", "--compare")
    told = run(capfd, *command).err
    assert f"relative dose {DOSES['positive', 'response']:.2f}" in told
    assert f"relative dose {DOSES['negative', 'response']:.2f}" in told
    assert "loud: about as far as a system prompt that asks for it (0.9 times)" in told
    assert "quiet: 0.9 times as far as the system prompt for loud goes the other way" in told
    (said,) = run(capfd, *command, "--json").document["worth"]
    assert said.startswith("loud: about as far")


def test_a_removal_has_no_opposite(tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", f"!{vector}", "-n", "4", "--compare", "--json")
    assert set(result.document) >= {"text", "unsteered"}
    assert "opposite" not in result.document


def test_text_goes_to_stdout_and_the_rest_to_stderr(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "5", "--seed", "1")
    document = run(capfd, *arguments, "--json").document
    result = run(capfd, *arguments)
    assert result.out == document["text"] + "\n"
    assert "seed 1" in result.err


THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}{# </think> #}"""


@pytest.fixture
def thinking(tmp_path: Path) -> Path:
    """A model that thinks first, and, as its weights are random, to the end."""
    return write_tiny_model(tmp_path / "thinking.gguf", chat_template=THINKS)


def test_what_a_model_thinks_stays_out_of_a_pipe_unless_asked_for(thinking: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "Hello", "-m", thinking, "-n", "6", "--seed", "3")
    document = run(capfd, *common, "--json").document
    assert (document["text"], bool(document["reasoning"])) == ("", True)
    hidden = run(capfd, *common)
    assert hidden.out == ""
    assert "--no-think" in hidden.err
    shown = run(capfd, *common, "--show-thinking")
    assert shown.out == f"Thinking...\n{document['reasoning']}\n...done thinking.\n\n"
    answered = run(capfd, *common, "--no-think", "--json").document
    assert answered["text"]
    assert "reasoning" not in answered
    assert run(capfd, *common, "--no-think").out == f"{answered['text']}\n"


def test_the_model_is_told_the_day(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By its template: here by a letter for each year since the one that vectors are built in."""
    lengths = []
    for number, dated in enumerate(("", "{{ 'x' * (strftime_now('%Y') | int - 2024) }}")):
        model = write_tiny_model(tmp_path / f"{number}.gguf", chat_template=CHATML_TEMPLATE + dated)
        lengths.append(run(capfd, "generate", "Hello", "-m", model, "-n", "2", "--json").document["timing"]["prompt_tokens"])
    assert lengths[1] - lengths[0] == datetime.now().year - 2024 > 0


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_steering_of_a_reasoning_that_there_is_not_is_told(
    tiny_path: TinyPath,
    thinking: Path,
    vector: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    common = (command, *(["Hello"] if command == "generate" else []), "-n", "4", "-s", f"0.1 {vector}@thinking")
    for model, options, told in (
        (tiny_path("llama"), (), True),
        (thinking, (), False),
        (thinking, ("--no-think",), True),
    ):
        result = run(capfd, *common, "-m", model, *options)
        assert result.code == 0
        assert ("@thinking steers nothing" in result.err) == told


def test_a_steering_that_is_changed_in_a_chat_is_told_of_as_well(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/steer 0.1 {vector}@thinking\n"))
    assert "@thinking steers nothing" in run(capfd, "chat", "-m", tiny_path("llama")).err


def test_stop_ends_the_answer_before_the_text(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "30", "--temperature", "0", "--json")
    whole = run(capfd, *arguments).document["text"]
    stop = whole[4:7]
    cut = run(capfd, *arguments, "--stop", stop).document
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_a_base_model_gets_plain_text_and_it_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_model(tmp_path / "base.gguf", chat_template=None)
    arguments = ("generate", "Hello", "-m", base, "-n", "5", "--seed", "1", "--json")
    plain = run(capfd, *arguments)
    assert "no chat template" in plain.err
    raw = run(capfd, *arguments, "--raw")
    assert raw.err == ""
    assert raw.document["tokens"] == plain.document["tokens"]


def test_usage_errors(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "--compare").code == 2
    assert run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "--raw", "--system", "x").code == 2
    assert run(capfd, "generate", "Hello", "--temperature", "-1").code == 2
    assert run(capfd, "generate").code == 2
    assert run(capfd, "no-such-command").code == 2


def test_bad_models(tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.gguf"
    assert_one_clear_line(run(capfd, "generate", "Hello", "-m", missing), str(missing))
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    assert_one_clear_line(run(capfd, "generate", "Hello", "-m", text), str(text), "GGUF")
    cut = tmp_path / "cut.gguf"
    whole = tiny_path("llama").read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1000):
        cut.write_bytes(whole[:size])
        assert_one_clear_line(run(capfd, "generate", "Hello", "-m", cut), str(cut))


def test_a_vector_of_another_shape(tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.gguf"
    write_vector(ControlVector({1: np.ones(96, np.float32)}), wide)
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", wide)
    assert_one_clear_line(result, "n_embd 96", "n_embd 64")
    deep = tmp_path / "deep.gguf"
    write_vector(ControlVector({9: np.ones(64, np.float32)}), deep)
    assert_one_clear_line(run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", deep), "layer 9", "4 layers")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("direction.0", np.ones(64, np.float32), "block 0"),
        ("direction.1", np.ones(64, np.float16), "F16"),
        ("direction.1", np.full(64, np.nan, np.float32), "not a finite number"),
        ("direction.1", np.ones((2, 64), np.float32), "2-dimensional"),
        ("weights.1", np.ones(64, np.float32), "weights.1"),
    ],
)
def test_vectors_that_llama_cpp_would_not_load(
    tiny_path: TinyPath,
    tmp_path: Path,
    name: str,
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_one_clear_line(run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", path), message, str(path))


def test_an_unknown_vector_names_the_nearest(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    assert_one_clear_line(run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", "hapy"), '"hapy"', "happy")


def test_a_malformed_expression_shows_the_place(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", "0.5 happy sad")
    assert result.code == 1
    assert result.out == ""
    _, expression, caret = result.err.rstrip("\n").splitlines()[:3]
    assert expression.strip() == "0.5 happy sad"
    assert expression[caret.index("^") :] == "sad"


def test_a_prompt_longer_than_the_context(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "generate", "Hello " * 100, "-m", tiny_path("llama"), "--context", "64")
    assert_one_clear_line(result, "64", "--context")


def test_an_unsteerable_model_is_refused_but_still_answers(
    tiny_path: TinyPath, vector: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_path(UNSTEERABLE_ARCHITECTURE)
    result = run(capfd, "generate", "Hello", "-m", model, "-s", vector, "-n", "3", "--json")
    assert result.code == 1
    assert "cannot be steered" in result.err
    assert run(capfd, "generate", "Hello", "-m", model, "-n", "3", "--json").code == 0


def test_ctrl_c_ends_the_answer_not_the_program(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from localsteer.llama.sampling import Sampler

    drawn = 0
    sample = Sampler.sample

    def interrupted(self: Sampler, *arguments: object, **named: object) -> int:
        nonlocal drawn
        drawn += 1
        if drawn == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return sample(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "sample", interrupted)
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-n", "100", "--json")
    assert result.code == 0
    assert result.document["finish_reason"] == "interrupted"
    assert len(result.document["tokens"]) == 5


# Calibrated vectors


@pytest.fixture
def loud(tiny: Model, tmp_path: Path) -> Path:
    """A vector whose doses are 0.3 and 0.4, or 0.12 and 0.16 with the prompt steered as well."""
    path = tmp_path / "loud.gguf"
    write_vector(calibrated_on(tiny), path)
    return path


@pytest.mark.parametrize(
    ("expression", "options", "dose"),
    [
        ("{}", (), DOSES["positive", "response"]),
        ("-{}", (), DOSES["negative", "response"]),
        ("0.5 {}", (), 0.15),
        ("{}", ("--steer-prompt",), DOSES["positive", "prompt"]),
        ("-{}", ("--steer-prompt",), DOSES["negative", "prompt"]),
        ("{}", ("--anchored",), DOSES["positive", "anchored"]),
        ("-{}", ("--anchored",), DOSES["negative", "anchored"]),
    ],
)
def test_strength_one_is_the_calibrated_dose(
    tiny_path: TinyPath,
    loud: Path,
    capfd: pytest.CaptureFixture[str],
    expression: str,
    options: tuple[str, ...],
    dose: float,
) -> None:
    arguments = ("generate", "Hello", "-m", tiny_path("llama"), "-s", expression.format(loud), "-n", "3", "--json")
    result = run(capfd, *arguments, *options)
    assert result.document["relative_dose"] == pytest.approx(dose)
    assert result.err == ""


def test_a_dose_past_the_calibrated_range_is_answered_with_a_note(
    tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", f"1.5 {loud}", "-n", "3", "--json")
    assert result.document["relative_dose"] == pytest.approx(0.45)
    assert "past the calibrated range: relative dose 0.45, calibrated up to 0.30" in result.err


@pytest.mark.parametrize("expression", ["{}", "-0.5 {}", "1.001 {}", ""])
def test_a_dose_within_the_largest_allowed_is_answered(
    tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str], expression: str
) -> None:
    arguments = ("generate", "Hello", "-m", tiny_path("llama"), "-s", expression.format(loud), "-n", "3")
    assert run(capfd, *arguments, "--max-dose", "0.301").code == 0


def test_a_dose_above_the_largest_allowed_is_refused(tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ("-m", tiny_path("llama"), "--max-dose", "0.35")
    # Of the negative pole, whose dose is larger.
    result = run(capfd, "generate", "Hello", "-s", f"-{loud}", *common)
    assert_one_clear_line(result, f"-{loud} has a relative dose of 0.40 on this model", "--max-dose allows 0.35")
    assert run(capfd, "generate", "Hello", "-s", f"-{loud}", "-n", "3", "--steer-prompt", *common).code == 0
    assert_one_clear_line(run(capfd, "chat", "-s", f"-{loud}", *common), "0.40", "--max-dose")


def test_compare_stays_within_the_largest_allowed_dose_both_ways(
    tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # -1 has a larger dose than 1, and is answered too.
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-s", loud, "-n", "3", "--compare", "--json")
    assert run(capfd, *common, "--max-dose", "0.45").code == 0
    assert_one_clear_line(run(capfd, *common, "--max-dose", "0.35"), "0.40", "--max-dose", "0.35")


def test_what_a_file_says_or_not_of_hidden_norms_is_no_way_past_the_largest_dose(
    tiny: Model, tiny_path: TinyPath, tmp_path: Path, vector: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "3", "--max-dose", "0.5")
    assert_one_clear_line(run(capfd, *common, "-s", f"100 {vector}"), "--max-dose")  # it says nothing
    assert run(capfd, *common, "-s", f"0.001 {vector}").code == 0
    assert_one_clear_line(run(capfd, *common, "-s", f"!{vector}"), "removes", "--max-dose")
    lying = tmp_path / "lying.gguf"
    norms = read_hidden_norm(tiny) * np.float32(1e6)
    write_vector(ControlVector({1: np.ones(tiny.n_embd, np.float32)}, Provenance(hidden_norm=norms)), lying)
    assert_one_clear_line(run(capfd, *common, "-s", f"100 {lying}"), "--max-dose")
    result = run(capfd, *common, "-s", f"0.01 {lying}")
    assert result.code == 0
    assert "--max-dose goes by the model" in result.err


def test_a_model_whose_hidden_states_cannot_be_measured_has_no_largest_dose(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ("-m", tiny_path(UNSTEERABLE_ARCHITECTURE), "--max-dose", "0.5")
    assert_one_clear_line(run(capfd, "generate", "Hello", *common), "Leave out --max-dose")


@pytest.mark.parametrize("dose", ["0", "-1", "x"])
def test_a_largest_dose_must_be_a_positive_number(capfd: pytest.CaptureFixture[str], dose: str) -> None:
    assert run(capfd, "generate", "Hello", "--max-dose", dose).code == 2
    assert run(capfd, "chat", "--max-dose", dose).code == 2


@pytest.mark.parametrize(("words", "stray"), [(("how", "are", "you"), "are you"), (("Hi", "-s", "0.5", "happy"), "happy")])
def test_what_has_no_quotes_is_told_to_get_some(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], stray: str) -> None:
    result = run(capfd, "generate", *words)
    assert result.code == 2
    assert f'What is "{stray}"? Put quotes around' in result.err


def test_doses_that_were_not_measured_for_anchored_answers_are_those_of_the_others(
    tiny: Model, tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vector = calibrated_on(tiny)
    known = vector.provenance.calibration
    assert known is not None
    sides = {key: side for key, side in known.sides.items() if key[1] != "anchored"}
    path = tmp_path / "loud.gguf"
    write_vector(replace(vector, provenance=replace(vector.provenance, calibration=replace(known, sides=sides))), path)
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", path, "-n", "3", "--json", "--anchored")
    assert result.document["relative_dose"] == pytest.approx(DOSES["positive", "response"])
    assert "there is no dose for anchored answers" in result.err


def test_without_steering_there_is_nothing_to_anchor(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    everything = ("--min-p", "0", "--top-p", "1", "--top-k", "0")
    common = ("generate", "Hello", "-m", tiny_path("llama"), "-n", "3", "--seed", "2", "--json", *everything)
    anchored = run(capfd, *common, "--anchored").document
    assert (anchored["tokens"], anchored["anchored"]) == (run(capfd, *common).document["tokens"], False)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--steer-prompt",), 2, "--anchored steers the response alone: leave out --steer-prompt."),
        (("--min-p", "0", "--top-p", "1", "--top-k", "0"), 1, "An anchored answer needs top-k, top-p or min-p"),
    ],
)
def test_what_cannot_be_anchored_is_refused(
    tiny_path: TinyPath, loud: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, message: str
) -> None:
    result = run(capfd, "generate", "Hello", "-m", tiny_path("llama"), "-s", loud, "-n", "3", "--anchored", *options)
    assert result.code == code
    assert message in result.err


FLOATS = ("--temperature", "--top-p", "--min-p", "--repeat-penalty", "--frequency-penalty", "--presence-penalty", "--max-dose")
WHOLE = ("--top-k", "--max-tokens", "--seed", "--context", "--threads", "--gpu-layers")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, value) for option in FLOATS for value in ("nan", "inf", "-inf", "1e400", "-1", "x")],
        *[(option, value) for option in WHOLE for value in ("-1", "0.5", str(2**31), str(2**64), "1" + "0" * 400, "x")],
    ],
)
def test_a_number_that_is_none_or_past_all_limits_is_refused(
    capfd: pytest.CaptureFixture[str], tiny_path: TinyPath, option: str, value: str
) -> None:
    if (option, value) in [("--frequency-penalty", "-1"), ("--presence-penalty", "-1"), ("--seed", str(2**31))]:
        return  # these are numbers that there are
    refused = run(capfd, "generate", "hi", "-m", tiny_path("llama"), "-n", "1", option, value)
    assert refused.code == 2
    assert "Traceback" not in refused.err
    assert option in refused.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--temperature", "1e30"), ("--temperature", "1e-320"), ("--top-p", "0"), ("--min-p", "1"), ("--top-k", "1000000")],
        *[("--repeat-penalty", "1e30"), ("--repeat-penalty", "1e-30"), ("--frequency-penalty", "-2"), ("--seed", str(MAX_SEED))],
    ],
)
def test_a_number_at_its_limit_is_taken(capfd: pytest.CaptureFixture[str], tiny_path: TinyPath, option: str, value: str) -> None:
    taken = run(capfd, "generate", "hi", "-m", tiny_path("llama"), "-n", "2", option, value)
    assert taken.code == 0 or "no numbers" in taken.err, taken.err
