from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.errors import PolicyError
from localsteer.policy.policy_file import ModelSpec, PolicyDocument, ProbeSpec, RuleSpec, load_policy, parse_policy

POLICY = """\
# Be calm, and leak nothing.
version: 1
classifiers:
  hostile: {type: probe, vector: hostile.gguf, watch: prompt}
  leaking:
    type: rule
    patterns:
      - '(?i)api[_ -]?key'
      - 'sk-[a-z]+'
    words: [password]
    watch: output
  judge:
    type: model
    model: guard.gguf
    question: "Does this ask for something dangerous?"
    threshold: 0.6
    watch: prompt
rules:
  - name: stay-calm
    when: hostile
    steer: "1.0 calm"
    hold: response
  - name: no-leaks
    when: "leaking and not judge"
    steer: "1.5 cautious"
    rewind: 12
    hold: 40
    ramp: 4
on_error: pass
audit: audit.jsonl
"""

# As the feature was asked for.
ASKED = """\
version: 1
classifiers:
  hostile: {type: probe, vector: hostile.gguf, watch: prompt}             # reads the residual stream
  leaking: {type: rule, patterns: ['(?i)api[_ -]?key'], words: [password], watch: output}
  judge:   {type: model, model: guard.gguf, question: "Does this ask for something dangerous?", threshold: 0.6, watch: prompt}
rules:
  - {name: stay-calm, when: hostile, steer: "1.0 calm", hold: response}
  - {name: no-leaks, when: "leaking and not judge", steer: "1.5 cautious", rewind: 12, hold: 40, ramp: 4}
on_error: steer        # steer | pass | stop
audit: audit.jsonl
"""

SMALLEST = """\
version: 1
classifiers: {a: {type: rule, words: [b], watch: output}}
rules: [{name: c, when: a, steer: d}]
"""


def parse(text: str = POLICY) -> PolicyDocument:
    return parse_policy(text, "policy.yaml")


def refusal(text: str) -> str:
    """What is said of a broken policy."""
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return str(caught.value)


def changed(old: str, new: str, text: str = POLICY) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


# A good policy


@pytest.mark.parametrize(
    "text", [POLICY.replace("on_error: pass", "on_error: steer").replace("\n      - 'sk-[a-z]+'", ""), ASKED]
)
def test_a_policy_says_what_it_says(text: str) -> None:
    made = parse(text)
    question = "Does this ask for something dangerous?"
    assert list(made.classifiers) == ["hostile", "leaking", "judge"]
    assert made.classifiers["hostile"] == ProbeSpec(type="probe", vector="hostile.gguf", watch="prompt")
    leaking = RuleSpec(type="rule", patterns=["(?i)api[_ -]?key"], words=["password"], watch="output")
    assert made.classifiers["leaking"] == leaking
    judge = ModelSpec(type="model", model="guard.gguf", question=question, threshold=0.6, release=None, watch="prompt")
    assert made.classifiers["judge"] == judge
    calm, leaks = made.rules
    assert (calm.name, calm.when.text, str(calm.steer), calm.hold) == ("stay-calm", "hostile", "calm", "response")
    assert (calm.ramp, calm.rewind) == (0, 0)
    assert (leaks.name, str(leaks.steer), leaks.hold, leaks.ramp, leaks.rewind) == ("no-leaks", "1.5 cautious", 40, 4, 12)
    assert leaks.when.names == ("leaking", "judge")
    assert (made.on_error, made.audit) == ("steer", "audit.jsonl")


def test_what_a_policy_may_leave_out() -> None:
    made = parse(SMALLEST)
    assert (made.on_error, made.stride, made.audit, made.audit_text) == ("steer", 1, None, False)
    assert (made.rules[0].hold, made.rules[0].ramp, made.rules[0].rewind) == ("response", 0, 0)


def test_a_probe_and_a_model_may_leave_out_what_is_known() -> None:
    made = parse(SMALLEST.replace("{type: rule, words: [b], watch: output}", "{type: probe, vector: b.gguf}"))
    assert made.classifiers["a"] == ProbeSpec(type="probe", vector="b.gguf")
    made = parse(SMALLEST.replace("{type: rule, words: [b], watch: output}", "{type: model, question: b, watch: output}"))
    spec = made.classifiers["a"]
    assert isinstance(spec, ModelSpec)
    assert (spec.model, spec.threshold, spec.release) == (None, 0.5, None)


@pytest.mark.parametrize("name", ["a", "A", "_", "a_1", "probe", "rule", "model", "type", "print"])
def test_names_that_a_condition_can_hold_are_taken(name: str) -> None:
    made = parse(SMALLEST.replace("{a:", f"{{{name}:").replace("when: a", f"when: not {name}"))
    assert made.rules[0].when.names == (name,)


def test_whole_numbers_do_where_numbers_are_asked_for() -> None:
    made = parse(changed("threshold: 0.6", "threshold: 1\n    release: 0"))
    spec = made.classifiers["judge"]
    assert isinstance(spec, ModelSpec)
    assert (spec.threshold, spec.release) == (1, 0)


def test_a_rule_may_rewind_if_any_of_its_classifiers_watches_the_output() -> None:
    assert parse(changed("when: hostile\n", "when: hostile or leaking\n    rewind: 3\n")).rules[0].rewind == 3


def test_a_classifier_that_no_rule_asks_for_is_no_mistake() -> None:
    assert len(parse(changed("leaking and not judge", "leaking")).classifiers) == 3


def test_hundreds_of_words_are_taken() -> None:
    words = ", ".join(f"word{number}" for number in range(800))
    spec = parse(changed("[password]", f"[{words}]")).classifiers["leaking"]
    assert isinstance(spec, RuleSpec)
    assert len(spec.words) == 800


# Broken policies

BROKEN = [
    # What is replaced by what, the line of the mistake, and what is said.
    # Keys that nothing knows, at each level.
    ("version: 1", "version: 1\nversoin: 1", 3, "versoin: there is no such key"),
    ("version: 1", "version: 1\n7: 1", 3, "7: keys should be strings"),
    ("vector: hostile.gguf", "vector: hostile.gguf, bias: 1", 4, "classifiers.hostile.bias: there is no such key"),
    ("    words: [password]", "    wrods: [password]", 10, "classifiers.leaking.wrods: there is no such key"),
    ("    threshold: 0.6", "    threshhold: 0.6", 16, "classifiers.judge.threshhold: there is no such key"),
    ("    words: [password]", "    threshold: 0.5", 10, "classifiers.leaking.threshold: there is no such key"),
    ("    hold: response", "    hodl: response", 22, "rules.0.hodl: there is no such key"),
    ("    ramp: 4", "    rmap: 4", 28, "rules.1.rmap: there is no such key"),
    # Missing ones.
    ("version: 1\n", "", 2, "version: field required"),
    ("    watch: output\n", "", 5, "classifiers.leaking.watch: field required"),
    ("    question:", "    # question:", 12, "classifiers.judge.question: field required"),
    ("vector: hostile.gguf, ", "", 4, "classifiers.hostile.vector: field required"),
    ("    when: hostile\n", "", 19, "rules.0.when: field required"),
    # Wrong types and values.
    ("version: 1", "version: 2", 2, "version: input should be 1"),
    ("version: 1", "version: '1'", 2, "version: input should be 1"),
    ("type: rule", "type: rul", 5, "classifiers.leaking: a classifier needs a type, one of: rule, probe, model"),
    ("    type: rule\n", "", 5, "classifiers.leaking: a classifier needs a type, one of: rule, probe, model"),
    ("type: rule", "type: [rule]", 5, "classifiers.leaking: a classifier needs a type, one of: rule, probe, model"),
    (
        "  hostile: {type: probe, vector: hostile.gguf, watch: prompt}",
        "  hostile: 7",
        4,
        "classifiers.hostile: a classifier needs",
    ),
    ("hostile.gguf, watch: prompt", "hostile.gguf, watch: both", 4, "classifiers.hostile.watch: input should be 'prompt' or"),
    ("vector: hostile.gguf", "vector: ''", 4, "classifiers.hostile.vector: string should have at least 1 character"),
    ("vector: hostile.gguf", "vector: hostile.gguf, threshold: .nan", 4, "classifiers.hostile.threshold: input should be a fin"),
    ("vector: hostile.gguf", "vector: hostile.gguf, threshold: high", 4, "classifiers.hostile.threshold: input should be a val"),
    ("    model: guard.gguf", "    model: 7", 14, "classifiers.judge.model: input should be a valid string"),
    ("    model: guard.gguf", "    model: ''", 14, "classifiers.judge.model: string should have at least 1 character"),
    ("    model: guard.gguf", "    model: {file: guard.gguf}", 14, "classifiers.judge.model: input should be a valid string"),
    ("threshold: 0.6", "threshold: 1.5", 16, "classifiers.judge.threshold: input should be less than or equal to 1"),
    ("threshold: 0.6", "threshold: -0.5", 16, "classifiers.judge.threshold: input should be greater than or equal to 0"),
    ("threshold: 0.6", "threshold: 0.6\n    release: -0.5", 17, "classifiers.judge.release: input should be greater than or eq"),
    ("threshold: 0.6", "threshold: .nan", 16, "classifiers.judge.threshold: input should be"),
    ("threshold: 0.6", "threshold: true", 16, "classifiers.judge.threshold: input should be a valid number"),
    ("[password]", "password", 10, "classifiers.leaking.words: input should be a valid list"),
    ("[password]", "[a, yes]", 10, "classifiers.leaking.words.1: input should be a valid string"),
    ("[password]", "[a, '']", 10, "classifiers.leaking.words.1: string should have at least 1 character"),
    ("[password]", "[a, ' \t']", 10, "classifiers.leaking.words.1: this word is empty"),
    ("[password]", '["\\ud800"]', 10, "classifiers.leaking.words.0: input should be a valid string"),
    ("- 'sk-[a-z]+'", "- 7", 9, "classifiers.leaking.patterns.1: input should be a valid string"),
    ("- 'sk-[a-z]+'", "- 'sk-[a-z'", 9, "classifiers.leaking.patterns.1: not a pattern that RE2 takes (missing ]: [a-z)"),
    (
        "- 'sk-[a-z]+'",
        "- '(?=sk)'",
        9,
        "classifiers.leaking.patterns.1: not a pattern that RE2 takes (invalid perl operator: (?=)",
    ),
    ("- '(?i)api[_ -]?key'", "- '(a)\\1'", 8, "classifiers.leaking.patterns.0: not a pattern that RE2 takes"),
    ("- 'sk-[a-z]+'", "- '(?:\\pL{100}){10}'", 9, "classifiers.leaking.patterns.1: not a pattern that RE2 takes (pattern too"),
    ("hold: 40", "hold: 0", 27, "rules.1.hold: input should be 'response', or input should be greater than or equal to 1"),
    ("hold: 40", "hold: forever", 27, "rules.1.hold: input should be 'response', or input should be a valid integer"),
    ("hold: 40", "hold: 1.5", 27, "rules.1.hold: input should be 'response', or input should be a valid integer"),
    ("ramp: 4", "ramp: -1", 28, "rules.1.ramp: input should be greater than or equal to 0"),
    ("rewind: 12", "rewind: -1", 26, "rules.1.rewind: input should be greater than or equal to 0"),
    ("rewind: 12", "rewind: '12'", 26, "rules.1.rewind: input should be a valid integer"),
    ("rewind: 12", "rewind: 12.0", 26, "rules.1.rewind: input should be a valid integer"),
    ("name: stay-calm", "name: 7", 19, "rules.0.name: input should be a valid string"),
    ("when: hostile", "when: true", 20, "rules.0.when: input should be a valid string"),
    ("when: hostile", "when: ''", 20, "rules.0.when: string should have at least 1 character"),
    ("on_error: pass", "on_error: explode", 29, "on_error: input should be 'steer', 'pass' or 'stop'"),
    ("on_error: pass", "stride: 0", 29, "stride: input should be greater than or equal to 1"),
    ("on_error: pass", "audit_text: 'yes'", 29, "audit_text: input should be a valid boolean"),
    ("on_error: pass", "audit_max_bytes: 10", 29, "audit_max_bytes: input should be greater than or equal to 1000"),
    ("on_error: pass", "audit_files: 0", 29, "audit_files: input should be greater than or equal to 1"),
    ("audit: audit.jsonl", "audit: ''", 30, "audit: string should have at least 1 character"),
    ("audit: audit.jsonl", "audit: [a]", 30, "audit: input should be a valid string"),
    # Names.
    ("  leaking:", "  leak-ing:", 5, "classifiers.leak-ing: a name is made of letters, digits and _, and begins with no digit"),
    ("  leaking:", "  1leaking:", 5, "classifiers.1leaking: a name is made of letters"),
    ("  leaking:", "  größe:", 5, "classifiers.größe: a name is made of letters"),
    ("  leaking:", "  not:", 5, "classifiers.not: that word has a meaning of its own in a condition"),
    ("  leaking:", "  pass:", 5, "classifiers.pass: that word has a meaning of its own in a condition"),
    ("  leaking:", "  class:", 5, "classifiers.class: that word has a meaning of its own in a condition"),
    ("  leaking:", "  7:", 5, "classifiers.7: input should be a valid string"),
    ("name: no-leaks", "name: stay-calm", 23, 'rules.1.name: there is a rule "stay-calm" already'),
    # Conditions and expressions.
    ("when: hostile", "when: hostil", 20, 'rules.0.when: there is no classifier "hostil"; there are: hostile, leaking, judge'),
    ("leaking and not judge", "leaking and (judge or jugde)", 24, 'rules.1.when: there is no classifier "jugde"; there are'),
    ("when: hostile", "when: hostile and", 20, 'rules.0.when: "hostile and" is no condition such as'),
    ("when: hostile", "when: hostile > 0.5", 20, 'rules.0.when: "hostile > 0.5" has no place in a condition'),
    ("1.0 calm", "1.0 calm @@", 21, 'rules.0.steer: expected + or - between two terms (column 10 of "1.0 calm @@")'),
    ("1.5 cautious", "one.and a half@", 25, "rules.1.steer: "),
    ("1.0 calm", " ", 21, "rules.0.steer: it steers by nothing"),
    ("1.0 calm", "", 21, "rules.0.steer: string should have at least 1 character"),
    # What does not go together.
    ("when: hostile\n", "when: hostile\n    rewind: 3\n", 21, "rules.0.rewind: the rule watches the prompt only"),
    ("leaking and not judge", "hostile or not judge", 26, "rules.1.rewind: the rule watches the prompt only"),
    ("threshold: 0.6", "threshold: 0.6\n    release: 0.7", 17, "classifiers.judge.release: it must not be above the threshold"),
    ("threshold: 0.6", "release: 0.7", 16, "classifiers.judge.release: it must not be above the threshold"),
    ("vector: hostile.gguf", "vector: h, threshold: 1, release: 2", 4, "classifiers.hostile.release: it must not be above"),
    # No YAML.
    ("version: 1", "version: @1", 2, "this is not valid YAML: found character '@' that cannot start any token"),
    ("rules:", "\trules:", 18, "this is not valid YAML"),
    ("[password]", "[password", 11, "this is not valid YAML"),
    ("on_error: pass", "on_error: *pass", 29, "this is not valid YAML: found undefined alias 'pass'"),
    ("audit: audit.jsonl", "audit: !!python/name:os.system", 30, "this is not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "said"), BROKEN, ids=[new for _, new, *_ in BROKEN])
def test_a_broken_policy_names_the_line_and_the_mistake(old: str, new: str, line: int, said: str) -> None:
    message = refusal(changed(old, new))
    assert message.startswith(f"policy.yaml, line {line}: {said}")
    assert "\n" not in message
    assert "YAML" in said or message.endswith(". docs/policy.md shows the format.")


PIECES = [
    "",
    " ",
    "\n",
    "\n  ",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "#",
    "&a ",
    "*a",
    "!!int ",
    "|\n",
    "null",
    "7",
    "ü",
    "\0",
]


@settings(max_examples=300)
@given(st.integers(0, len(POLICY)), st.integers(0, 12), st.one_of(st.sampled_from(PIECES), st.text(max_size=5)))
def test_whatever_is_mistyped_is_a_policy_or_a_policy_error(at: int, removed: int, typed: str) -> None:
    text = POLICY[:at] + typed + POLICY[at + removed :]
    refused, made = "", None
    try:
        made = parse(text)
    except PolicyError as error:
        refused = str(error)
    assert refused.startswith("policy.yaml") == (made is None)
    assert made is None or all(set(rule.when.names) <= set(made.classifiers) for rule in made.rules)


def test_a_rule_classifier_needs_something_to_look_for() -> None:
    message = refusal(SMALLEST.replace("words: [b], ", ""))
    assert message.startswith("policy.yaml, line 2: classifiers.a: give words or patterns to look for.")
    assert refusal(SMALLEST.replace("words: [b]", "words: [], patterns: []")) == message


def test_words_that_are_too_much_are_refused() -> None:
    message = refusal(SMALLEST.replace("[b]", f"[{'x' * 1_000_000}]"))
    assert message.startswith("policy.yaml, line 2: classifiers.a.words: ")
    assert "too large" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALLEST.replace("{a: {type: rule, words: [b], watch: output}}", "{}"), "line 2: classifiers: dictionary should have"),
        (SMALLEST.replace("{a: {type: rule, words: [b], watch: output}}", "[]"), "line 2: classifiers: input should be a valid"),
        (SMALLEST.replace("[{name: c, when: a, steer: d}]", "[]"), "line 3: rules: list should have at least 1 item"),
        (SMALLEST.replace("[{name: c, when: a, steer: d}]", "{}"), "line 3: rules: input should be a valid list"),
        (SMALLEST.replace("[{name: c, when: a, steer: d}]", "[c]"), "line 3: rules.0: input should be a valid dictionary"),
        (SMALLEST.replace("[{name: c, when: a, steer: d}]", ""), "line 3: rules: input should be a valid list"),
        ("version: 1\n", "line 1: classifiers: field required"),
    ],
)
def test_a_policy_needs_classifiers_and_rules(text: str, said: str) -> None:
    assert refusal(text).startswith(f"policy.yaml, {said}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- version: 1\n", "policy", "7", "null"])
def test_a_file_without_keys_is_no_policy(text: str) -> None:
    assert refusal(text) == "policy.yaml is not a policy file: it holds no keys. docs/policy.md shows one."


# Files


def test_a_policy_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(changed("password", "Schlüssel").encode())
    for found in (load_policy(path), load_policy(str(path))):
        assert found == parse(changed("password", "Schlüssel"))
    path.write_bytes(b"\xef\xbb\xbf" + POLICY.replace("\n", "\r\n").encode())
    assert load_policy(path) == parse()


def test_a_broken_policy_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(changed("hold: 40", "hodl: 40"))
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}, line 27: rules.1.hodl: ")


def test_a_missing_policy_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"There is no policy file .*policy\.yaml\. docs/policies/ has ready ones\."):
        load_policy(tmp_path / "policy.yaml")


def test_a_folder_is_no_policy_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path)


def test_a_policy_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes("version: groß".encode("latin-1"))
    with pytest.raises(PolicyError, match=r"policy\.yaml is not UTF-8 text \(byte 12\)"):
        load_policy(path)


def test_the_shipped_policies_are_good() -> None:
    paths = sorted((Path(__file__).parents[2] / "docs" / "policies").glob("*.yaml"))
    assert paths
    for path in paths:
        assert load_policy(path).rules


def test_a_rewind_covers_the_stride() -> None:
    assert "rules.1.rewind" in refusal(changed("on_error: pass", "on_error: pass\nstride: 13"))
    assert parse(changed("on_error: pass", "on_error: pass\nstride: 12")).stride == 12
