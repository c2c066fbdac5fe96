from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer

from localsteer.errors import LocalsteerError
from localsteer.llama.gbnf import is_lark, to_lark


def follows(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), to_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["ye", "yesno", ""]),
        ('root ::= ""', [""], ["a"]),
        ('root ::= "a"*', ["", "a", "aaa"], ["b"]),
        ('root ::= "a"+', ["a", "aaa"], [""]),
        ('root ::= "ab"?', ["", "ab"], ["a", "abab"]),
        ('root ::= "ab"{2}', ["abab"], ["ab", "ababab"]),
        ('root ::= "ab"{2,}', ["abab", "ababab"], ["ab"]),
        ('root ::= ("a" | "b"){ 1 , 2 }', ["a", "ba"], ["", "aab"]),
        ("root ::= [a-cx]", ["b", "x"], ["d", "-"]),
        ("root ::= [^a-c\\n]", ["d", "é", "🙂"], ["b", "\n"]),
        ("root ::= [-a] [a-] [\\]\\[]", ["--]", "aa["], ["b--"]),
        ("root ::= .", ["a", "\n", "🙂"], ["", "ab"]),
        (r'root ::= "\x41\u00e9\U0001F642\n\t\"\\"', ['Aé🙂\n\t"\\'], ["A"]),
        ('root ::= a-b aB\na-b ::= "x"\naB ::= "y"', ["xy"], ["yx"]),
        ('# about\nroot ::= "a" | # one\n  "b" # other\n\nx ::= "c"', ["a", "b"], ["c"]),
        ('root ::= (\n "a"\n | "b"\n)', ["a", "b"], ["ab"]),
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),
        ('root ::= "(" root ")" | "x"', ["((x))"], ["((x)"]),
        # Whatever leads to an end is right, however much another part could have taken.
        ('root ::= [a-z]* "end"', ["end", "theendend"], ["en"]),
        ('root ::= word tail\nword ::= [a-z]+\ntail ::= "b" | "(" tail ")"', ["ab", "bbb", "a(b)"], ["b", "a"]),
        ('root ::= ("a" | "ab" "!")+', ["aab!a"], ["ab"]),
    ],
)
def test_a_text_follows_it_as_in_llama_cpp(grammar: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not follows(grammar, text)] == []
    assert [text for text in bad if follows(grammar, text)] == []


def test_tokens_are_named_as_lark_names_them() -> None:
    assert to_lark("root ::= <[12]> !<[13]> <|start|>") == "start: <[12]> <[^13]> <|start|>"


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "root"),
        ("yes or no", "line 1"),
        ('word ::= "yes"', '"root"'),
        ('root ::= "yes" | word', '"word"'),
        ('root ::= "yes', "line 1"),
        ('root ::= "a"\nx ::= [a-z', "line 2"),
        ('root ::= "a")', "line 1"),
        ('root ::= ("a"', "line 1"),
        ('root ::= "a"{1000000}', "2,000"),
        ('root ::= "a"{3,1}', "3"),
        (f'root ::= "a"{{{"9" * 5000}}}', "line 1"),
        ("root ::= [z-a]", "range"),
        ("root ::= []", "empty"),
        (r'root ::= "\q"', "escape"),
        (r'root ::= "\u12"', "escape"),
        ("root ::= !<think>", "number"),
        (f"root ::= {'(' * 5000}", "nested"),
        ('root ::= "a" root', "no end"),
        ('root ::= "a" x\nx ::= "(" x ")"', "no end"),
    ],
)
def test_what_is_none_is_an_error_that_says_where(grammar: str, problem: str) -> None:
    with pytest.raises(LocalsteerError) as caught:
        to_lark(grammar)
    assert problem in str(caught.value)


# Where the work grew with the square of the length, each of these took minutes.
@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= r0\n" + "\n".join(f"r{number} ::= r{number + 1}" for number in range(30_000)) + '\nr30000 ::= "a"',
        f"root ::= [{'a-b' * 200_000}]",
        'root ::= "a"' + "\n" * 400_000,
    ],
    ids=("chain", "class", "lines"),
)
def test_a_long_one_is_read_soon(grammar: str) -> None:
    assert not is_lark(grammar)
    assert is_lark(to_lark(grammar))


@pytest.mark.parametrize("end", ["start", 'root ::= "a"{1,'])
def test_a_long_space_is_passed_soon(end: str) -> None:
    grammar = end + " " * 400_000
    assert not is_lark(grammar)
    with pytest.raises(LocalsteerError, match="line 1"):
        to_lark(grammar)


def test_lark_is_told_from_it() -> None:
    assert is_lark("start: x")
    assert is_lark('// about\nx: "a"\nstart[capture]: x')
    assert is_lark('%llguidance {}\nroot: "a"')
    assert not is_lark('start ::= "a"\nroot ::= start')
    assert not is_lark('root ::= "start: "')
    assert is_lark(to_lark('root ::= "a"'))
