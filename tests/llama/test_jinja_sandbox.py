from __future__ import annotations

import tracemalloc

import pytest

from localsteer.llama.jinja_sandbox import Program
from localsteer.llama.template_errors import RefusedError, TemplateError, TemplateLimitError

# Each would run for minutes, or fill gigabytes.
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters in a loop": "{% for a in range(99999) %}{% set x = range(99999) | sort | length %}{% endfor %}",
}
TOO_MUCH = {
    "product": "{{ 'x' * 10 ** 9 }}",
    "list product": "{{ [1] * 10 ** 9 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "powers": "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by ~": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by +": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled block": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "nested lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested dicts": "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "width": "{{ 'x' | center(10 ** 9) }}",
    "width of a method": "{{ 'x'.ljust(10 ** 9) }}",
    "width in a format": "{{ '{:>1000000000}'.format(1) }}",
    "width in a % format": "{{ '%1000000000d' % 1 }}",
    "width beside a format": "{{ '%*d' % (10 ** 9, 1) }}",
    "width from a value": "{{ '{:{}}'.format(1, '99999999') }}",
    "many widths": "{{ ('{0:9999}' * 10000).format(1) }}",
    "many widths of a % format": "{{ '%9999d' * 10000 % ((1,) * 10000) }}",
    "long numbers": "{{ [10 ** 1000] * 10 ** 6 }}",
    "namespaces in lists": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + [namespace(x='x' * 10 ** 6)] %}{% endfor %}",
    "namespaces that are filled later": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set one = namespace() %}"
    "{% set ns.x = ns.x + [one] %}{% set one.x = 'x' * 10 ** 6 %}{% endfor %}",
    "replace": "{% set x = 'a' * 10 ** 6 %}{{ x.replace('a', x) }}",
    "replace by a filter": "{% set x = 'a' * 10 ** 6 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 10 ** 6 %}{{ range(99999) | join(x) }}",
    "join by a method": "{% set x = 'a' * 10 ** 6 %}{{ x.join(range(99999) | map('string')) }}",
    "map": "{% set x = 'a' * 10 ** 6 %}{{ range(99999) | map('replace', '1', x) | list | length }}",
    "batch": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "indent": "{% set x = '\n' * 10 ** 6 %}{{ x | indent(10 ** 6) }}",
    "indent of JSON": "{{ ([1] * 10 ** 5) | tojson(indent=10 ** 5) }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% for i in [[1]] recursive %}{{ loop([i]) }}{% endfor %}",
}
REFUSED = {
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'other' as other %}",
    "extends": "{% extends 'other' %}",
    "internals": "{{ messages.__class__.__mro__ }}",
    "changes": "{{ messages.append(1) }}",
    "changes by the class": "{{ dict.update(messages[0], {'content': ''}) }}",
    "bytes": "{{ 'x'.encode() * 10 ** 8 }}",
    "bytes of a number": "{{ (1).to_bytes(1000000, 'big') }}",
    "tags by a method": "{{ ('<!---->' | e).striptags() }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "lipsum": "{{ lipsum(n=10 ** 5) }}",
}


def _many(each: str) -> str:
    """A template that keeps as many values as it can: each in a variable of its own."""
    return "".join(f"{{% set x{number} = {each} %}}" for number in range(500))


# Each stays below the size that any one value may have, and keeps many such.
HIDDEN = {
    "what a macro writes": "{% macro f() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "what a caller writes": "{% macro f() %}{{ caller() }}{% endmacro %}"
    "{% call f() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endcall %}",
    "what a caller of callers writes": "{% macro f() %}{% for i in range(999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    + "{% call f() %}" * 4
    + "x"
    + "{% endcall %}" * 4,
    "what a block of `set` writes": "{% set y %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
    "what a block of `filter` writes": "{% filter upper %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
    "{% endfilter %}",
    "what a `generation` writes": "{% generation %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endgeneration %}",
    "how a list looks": "{% set l = ['\u0001' * 10 ** 6] %}{% set y %}{% for i in range(999) %}{{ l }}{% endfor %}{% endset %}",
    "what a recursive macro writes": "{% macro f(n) %}{{ 'x' * 10 ** 6 }}{% set y = f(n - 1) if n %}{% endmacro %}{{ f(150) }}",
    "what a recursive macro is given": "{% macro f(n, s) %}{{ f(n - 1, s[1:] ~ 'x') if n }}{% endmacro %}"
    "{{ f(150, 'x' * 2 * 10 ** 6) }}",
    "what a recursive macro sets": "{% macro f(n) %}{% set y = 'x' * 2 * 10 ** 6 %}{{ f(n - 1) if n }}{{ y[:1] }}{% endmacro %}"
    "{{ f(150) }}",
    "what it has by default": "{% macro f(n, y='x' * 2 * 10 ** 6) %}{{ f(n - 1) if n }}{{ y[:1] }}{% endmacro %}{{ f(150) }}",
    "more and more arguments": "{% macro f() %}{{ f('x' * 2 * 10 ** 6, *varargs) if varargs | length < 200 }}{% endmacro %}"
    "{{ f() }}",
    "macros in a namespace": "{% set ns = namespace(x=[]) %}{% macro f(s) %}{% macro g() %}{{ s }}{% endmacro %}"
    "{% set ns.x = ns.x + [g] %}{% endmacro %}{% for i in range(500) %}{{ f('x' * 2 * 10 ** 6) }}{% endfor %}",
    "what a recursive loop sets": "{% for i in "
    + "[" * 40
    + "1"
    + "]" * 40
    + " recursive %}{% set y = 'x' * 2 * 10 ** 6 %}{{ loop(i) if i is iterable }}{{ y[:1] }}{% endfor %}",
    "what `with` sets": "".join(f"{{% with x{number} = 'x' * 2 * 10 ** 6 %}}" for number in range(40)) + "{% endwith %}" * 40,
    "cycles": "{% for i in range(500) %}{% set y = loop.cycle('x' * 2 * 10 ** 6, 'y' * 2 * 10 ** 6) %}{% endfor %}",
    "products": _many("'x' * 2 * 10 ** 6"),
    "products of wide letters": _many("'\U0001f600' * 2 * 10 ** 6"),
    "sums": _many("('x' * 10 ** 6) + ('y' * 10 ** 6)"),
    "texts put together": _many("('x' * 10 ** 6) ~ ('y' * 10 ** 6)"),
    "slices": "{% set y = 'x' * 2 * 10 ** 6 %}" + _many("y[1:]"),
    "joins": _many("(['abc'] * 10 ** 5) | join('xyz')"),
    "replaced": _many("('x' * 10 ** 6).replace('x', 'abc')"),
    "replaced by a filter": _many("('x' * 10 ** 6) | replace('x', 'abc')"),
    "formats": _many("'{}'.format('x' * 10 ** 6)"),
    "formats with %": _many("'%s' % ('x' * 10 ** 6)"),
    "formats by a filter": _many("'%s' | format('x' * 10 ** 6)"),
    "centred": _many("'x' | center(10 ** 6)"),
    "indented": _many("('\n' * 10 ** 5) | indent(30)"),
    "JSON": _many("('\u0001' * 10 ** 5) | tojson"),
    "JSON with an indent": _many("([1] * 10 ** 5) | tojson(indent=9)"),
    "JSON with separators": "{{ ([1] * 10 ** 5) | tojson(separators=('x' * 10 ** 5, 'y' * 10 ** 5)) }}",
    "words": "{% set y = 'x ' * 10 ** 6 %}" + _many("y.split()"),
    "letters": "{% set y = '\u6f22' * 10 ** 6 %}" + _many("y | list"),
    "ranges": _many("range(99999) | list"),
    "batches": _many("range(9) | batch(99999, 'x') | list"),
    "dictionaries": _many("dict.fromkeys(range(99999), 1)"),
}


@pytest.mark.parametrize("source", HIDDEN.values(), ids=HIDDEN)
def test_what_a_template_keeps_is_limited_as_a_whole(source: str) -> None:
    program = Program(source)
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimitError):
            program.render({"messages": []})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300e6


def test_words_wrapped_are_not_offered() -> None:
    with pytest.raises(TemplateError, match="wordwrap"):
        Program("{{ 'x' | wordwrap(1, wrapstring='y' * 10 ** 6) }}")


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    with pytest.raises(TemplateLimitError, match="does not end"):
        Program(source).render({"messages": []})


@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_template_that_makes_too_much_is_stopped(source: str) -> None:
    with pytest.raises(TemplateLimitError):
        Program(source).render({"messages": []})


@pytest.mark.parametrize("name", ["width from a value", "many widths", "many widths of a % format"])
def test_what_a_format_would_make_is_known_before_it_is_made(name: str) -> None:
    program = Program(TOO_MUCH[name])
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimitError):
            program.render({"messages": []})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_a_template_reaches_nothing_outside(source: str) -> None:
    with pytest.raises(RefusedError):
        Program(source).render({"messages": [{"role": "user", "content": "Hello"}]})


@pytest.mark.parametrize(
    "source",
    ["{% for m in messages %}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ x | nothing }}", "{{ x | striptags }}"],
)
def test_what_is_no_jinja_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError, match="not valid jinja"):
        Program(source)


def test_a_long_conversation_is_no_endless_one() -> None:
    turns = [{"role": "user", "content": "Hello " * 100}] * 2000
    prompt = Program("{% for m in messages %}{{ '<' ~ m.role ~ '>' + m.content | trim }}\n{% endfor %}").render(
        {"messages": turns}
    )
    assert prompt.count("<user>Hello") == 2000


def test_what_a_template_formats_and_keeps_is_no_excess() -> None:
    source = (
        "{% set ns = namespace(x='') %}{% for i in range(2000) %}{% set ns.x = ns.x + 'x' * 100 %}{% endfor %}{{ ns.x | length }}"
        """ {{ '{"a": {"b": %s}}' | format(1) }} {{ '{{{:>3}}}'.format(2) }} {{ 'in 2026: %5.1f' % 1.5 }}"""
    )
    assert Program(source).render({"messages": []}) == '200000 {"a": {"b": 1}} {  2} in 2026:   1.5'
