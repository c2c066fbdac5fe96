from __future__ import annotations

import tracemalloc

import pytest

from localsteer.llama.jinja_sandbox import Program, RefusedError, TemplateError, TemplateLimitError

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
