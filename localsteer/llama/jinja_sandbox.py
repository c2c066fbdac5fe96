"""Chat templates as transformers renders them, in a sandbox whose time and memory have limits.

A template is a program from a stranger's file. Jinja's own sandbox keeps it out of Python; here it cannot run on, or make more
text than any prompt holds, either. What a template is given, and how it is read, is that of `apply_chat_template` in
transformers 5 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_eval_context
from jinja2.visitor import NodeTransformer

from localsteer.errors import ModelError, shown

# Processor seconds of one rendering, and for each message more: the slowest of llama.cpp's 70 templates looks at every message
# again for each, and takes 0.2 s for 200 of them; on average they take 0.01 s.
_SECONDS = 1.0
_SECONDS_A_MESSAGE = 0.01
# Characters (and items) of any value: those of a million tokens.
_SIZE = 2**22
_LARGEST_ARGUMENT = 10**6  # of a function or filter: a width, a count
_LARGEST_BITS = 2**12
_HELD = 2**16  # items of lists whose sizes are remembered
_TURNS_UNCHECKED = 16  # of a loop: reading the clock costs as much as a turn

# They multiply what they are given, in ways of their own, and no known template uses them.
_NO_FILTERS = ("pprint", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = {"expandtabs", "maketrans", "translate"}

_LONG_NUMBER = re.compile(r"\d{5}")  # a width in a format string


class TemplateError(ModelError):
    """A chat template that cannot be used, or not for this conversation."""


class TemplateLimitError(TemplateError):
    """A template that runs too long, or makes too much."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The model's chat template {what}.", hint="It is damaged, or hostile: use another model file.")


class RefusedError(TemplateError):
    """A template that does not take what it is given."""


class Program:
    """A compiled template.

    Args:
        source: jinja source.

    Attributes:
        variables: the names that it may be given.

    Raises:
        TemplateError: the source is not valid jinja.
    """

    def __init__(self, source: str) -> None:
        environment = _Environment()
        try:
            tree = environment.parse(source)
            self.variables = frozenset(meta.find_undeclared_variables(tree)) - environment.globals.keys()
            tree = _Bounded().visit(tree)
            tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise TemplateError(f"The model's chat template is not valid jinja: {_sentence(error)}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """What the template writes of `messages` and whatever else it is given.

        Raises:
            RefusedError: it raises an error.
            TemplateLimitError: it runs too long, or makes too much.
        """
        _limits.begin(_SECONDS + _SECONDS_A_MESSAGE * len(variables["messages"]))
        try:
            return self._template.render(variables)
        except TemplateLimitError:
            raise
        except jinja2.TemplateNotFound as error:
            raise RefusedError(f"The model's chat template asks for another file, {shown(error.name)}.") from error
        except (MemoryError, RecursionError, OverflowError) as error:
            raise TemplateLimitError("goes too deep, or makes too much") from error
        except Exception as error:  # whatever a stranger's program may run into
            raise RefusedError(f"The model's chat template refuses this conversation: {_sentence(error)}") from error
        finally:
            _limits.forget()


def _sentence(error: Exception) -> str:
    text = shown(error).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Limits(threading.local):
    """What the rendering in this thread has used."""

    seconds = deadline = float("inf")
    turns = held = 0
    sizes: dict[int, tuple[object, int]]

    def begin(self, seconds: float) -> None:
        self.seconds, self.deadline, self.turns = seconds, time.thread_time() + seconds, 0
        self.forget()

    def step(self) -> None:
        if time.thread_time() > self.deadline:
            raise TemplateLimitError(f"does not end: it was stopped after {self.seconds:.2g} s")

    def turn(self) -> None:
        self.turns += 1
        if self.turns % _TURNS_UNCHECKED == 0:
            self.step()

    def size(self, value: object) -> int:
        """Characters and items of a value, those in it included; what it holds twice counts twice, as it is written twice."""
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, (list, tuple, dict)):
            return 1
        known = self.sizes.get(id(value))
        if known is None:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            # Nothing in the sandbox changes a list or a dictionary once it is there.
            known = self.sizes[id(value)] = value, 1 + sum(map(self.size, parts))
            self.held += len(parts)
            if self.held > _HELD:
                self.forget()
        return known[1]

    def forget(self) -> None:
        """What was measured is held until then, so that nothing else comes to its place in memory."""
        self.sizes, self.held = {}, 0

    def check(self, size: int) -> None:
        if size > _SIZE:
            raise TemplateLimitError("makes more text than any prompt holds")


_limits = _Limits()


def _checked(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)):
        _limits.check(_limits.size(value))
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _limits.turn()
        yield item


def _concatenated(parts: Iterable[Any]) -> str:
    texts, size = [], 0
    for part in parts:
        text = str(part)
        size += len(text)
        _limits.check(size)
        texts.append(text)
    return "".join(texts)


class _Bounded(NodeTransformer):
    """Puts the limits into a template's tree: at loops, `~`, and whatever makes lists."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted items")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "concatenated parts")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "checked value")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "checked value")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "checked value") if node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}`, by which transformers marks what to train on; the text in it is text as any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """A block of its own, as in transformers: what is set in it is not known outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    @staticmethod
    @pass_eval_context
    def _as_it_is(_context: nodes.EvalContext, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's own shows all that is in it, and what is in that.


class _Dict:
    """`dict`, without what would change one: `dict.update` is not known to the sandbox as such."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(_concatenated)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # It would compute constants before anything limits them.
            extensions=[_Generation, loopcontrols],
            loader=jinja2.BaseLoader(),
        )
        self.filters = {name: _guarded(name, one) for name, one in self.filters.items() if name not in _NO_FILTERS}
        self.filters |= {
            "tojson": _guarded("tojson", _to_json),
            "checked value": _checked,
            "counted items": _counted,
            "concatenated parts": _concatenated,
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            "dict": _Dict(),
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that may multiply, if its result is small enough."""
        _limits.step()
        if operator == "%" and isinstance(left, str):
            _check_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """A function, method or macro, if what it is given is small enough, and its result."""
        _limits.step()
        # `str.format` comes as the sandbox's own function around it.
        subject, name = getattr(getattr(called, "__wrapped__", called), "__self__", None), getattr(called, "__name__", "")
        if isinstance(subject, str):
            if name in _NO_METHODS:
                raise SecurityError(f"{name} is not allowed in a chat template")
            if name == "join":
                arguments = tuple(map(_bounded_list, arguments))
                subject, others = (*arguments, ())[0], (subject,)
            else:
                others = arguments
            _check_call(name, subject, others, named)
        elif not isinstance(called, Macro):
            _check_call(name, None, arguments, named)
        return _checked(super().call(context, called, *arguments, **named))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given, and what it returns."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value, behind Jinja's own argument

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        _limits.step()
        before, value, others = arguments[:place], arguments[place], arguments[place + 1 :]
        if name == "join":
            value = _bounded_list(value)
        elif isinstance(value, Iterator):
            value = _bounded(value)
        _check_call(name, value, others, named)
        return _checked(function(*before, value, *others, **named))

    return guarded


def _bounded(items: Iterable[Any]) -> Iterator[Any]:
    size = 0
    for item in _counted(items):
        size += _limits.size(item)
        _limits.check(size)
        yield item


def _bounded_list(items: Any) -> Any:
    return list(_bounded(items)) if isinstance(items, (Iterator, range)) else items


def _check_call(name: str, subject: Any, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Before a function, filter or method is called: what it would make of its subject is not too much."""
    values = (*others, *named.values())
    for value in values:
        if isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
            raise TemplateLimitError(f"asks for {value} of something")
    texts = [value for value in values if isinstance(value, str)]
    longest = max(map(len, texts), default=0)
    width = max((value for value in values if isinstance(value, int)), default=longest)
    if name in ("format", "format_map") and isinstance(subject, str):
        _check_format(subject, "%{", values)
    elif name == "join" and isinstance(subject, (list, tuple, dict, str)):
        _limits.check(_limits.size(subject) + longest * len(subject))
    elif name == "replace" and texts:
        _limits.check(str(subject).count(texts[0]) * longest)
    elif name == "indent":
        _limits.check(str(subject).count("\n") * max(width, longest))
    elif name == "tojson":
        _limits.check(_limits.size(subject) * max(width, longest, 1))
    elif name == "sum" and any(not isinstance(value, (int, float, str)) for value in values):
        raise SecurityError("sum is for numbers in a chat template")


def _check_format(text: str, marks: str, values: Iterable[Any]) -> None:
    if _LONG_NUMBER.search(text) or (marks[0] == "%" and "*" in text):
        raise TemplateLimitError("writes very wide columns")
    _limits.check(sum(map(text.count, marks)) * max(map(_limits.size, values), default=1))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for times, what in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(what, (str, list, tuple)):
            _limits.check(times * _limits.size(what))


def _check_bits(bits: int) -> None:
    if bits > _LARGEST_BITS:
        raise TemplateLimitError("computes with endless numbers")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # transformers' name: a template may use it as a keyword
    return datetime.now().strftime(format)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
