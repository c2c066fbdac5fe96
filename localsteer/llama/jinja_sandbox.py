"""Chat templates as transformers renders them, in a sandbox whose time and memory have limits.

A template is a program from a stranger's file. Jinja's own sandbox keeps it out of Python; here it cannot run on, or make more
text than any prompt holds, either. What a template is given, and how it is read, is that of `apply_chat_template` in
transformers 5 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import functools
import re
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from localsteer.errors import ModelError, shown
from localsteer.llama.jinja_additions import Generation, to_json

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

# They multiply what they are given, in ways of their own, or make bytes; and no known template uses them.
_NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = {"encode", "expandtabs", "maketrans", "striptags", "to_bytes", "translate"}

_NUMBER = re.compile(r"\d+")  # a width in a format string
_LONGEST_NUMBER = 4  # digits
_LONGEST_FLOAT = 320  # characters of 1e308, written by %f


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
    turns = held = kept = 0
    sizes: dict[int, tuple[object, int]]

    def begin(self, seconds: float) -> None:
        self.seconds, self.deadline, self.turns, self.kept = seconds, time.thread_time() + seconds, 0, 0
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
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
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

    def keep(self, new: object, old: object = ()) -> None:
        """A namespace keeps another value: namespaces count by what is in all of them together."""
        self.kept += self.size(new) - self.size(old)
        self.check(self.kept)

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


class _Namespace(Namespace):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        content = dict(*arguments, **named)
        _limits.keep(content)
        super().__init__(content)

    def __setitem__(self, name: str, value: Any) -> None:
        content = object.__getattribute__(self, "_Namespace__attrs")
        _limits.keep(value, content.get(name, ()))
        super().__setitem__(name, value)

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
            extensions=[Generation, loopcontrols],
            loader=jinja2.BaseLoader(),
        )
        self.filters = {name: _guarded(name, one) for name, one in self.filters.items() if name not in _NO_FILTERS}
        self.filters |= {
            "tojson": _guarded("tojson", to_json),
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
        if subject is not None and name in _NO_METHODS:
            raise SecurityError(f"{name} is not allowed in a chat template")
        if isinstance(subject, str):
            if name == "join":
                arguments = tuple(map(_bounded_list, arguments))
                subject, others = (*arguments, ())[0], (subject,)
            else:
                others = arguments
            _check_call(f"str.{name}" if name.startswith("format") else name, subject, others, named)
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
            # As llama.cpp does; transformers' JSON has no place for what `map` gives.
            value = list(_bounded(value)) if name == "tojson" else _bounded(value)
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
    if name == "format":
        _check_format(str(subject), "%", values)
    elif name.startswith("str.format"):
        _check_format(subject, "{", values)
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


def _check_format(text: str, mark: str, values: Iterable[Any]) -> None:
    numbers = _NUMBER.findall(text)
    # A width that is itself a value is in no text.
    inner = "*" in text if mark == "%" else any("{" in (spec or "") for _, _, spec, _ in string.Formatter().parse(text))
    if inner or any(len(number) > _LONGEST_NUMBER for number in numbers):
        raise TemplateLimitError("writes very wide columns")
    _limits.check(text.count(mark) * max(_LONGEST_FLOAT, *map(int, numbers), *map(_limits.size, values)))


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
