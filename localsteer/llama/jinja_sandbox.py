"""Chat templates as transformers renders them, in a sandbox whose time and memory have limits.

A template is a program from a stranger's file. Jinja's own sandbox keeps it out of Python; here it cannot run on, or make more
text than any prompt holds, either. What a template is given, and how it is read, is that of `apply_chat_template` in
transformers 5 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from localsteer.errors import shown
from localsteer.llama.jinja_additions import Generation, to_json
from localsteer.llama.jinja_limits import (
    Buffer,
    bounded,
    bounded_list,
    check_bits,
    check_call,
    check_format,
    check_product,
    checked,
    concatenated,
    counted,
    limits,
)
from localsteer.llama.template_errors import RefusedError, TemplateError, TemplateLimitError

# Processor seconds of one rendering, and for each message more: the slowest of llama.cpp's 70 templates looks at every message
# again for each, and takes 0.2 s for 200 of them; on average they take 0.01 s.
_SECONDS = 1.0
_SECONDS_A_MESSAGE = 0.01
# Bytes, roughly, of all that is made in one rendering, whether it is kept or not, and for each message more: macros, `set` and
# `with` can keep it all. llama.cpp's 70 templates make up to 3.4 MB of 200
# messages of 2,000 characters, and 7.5 MB of 20 with 50,000.
_MADE = 2**26
_MADE_A_MESSAGE = 2**18
# They multiply what they are given, in ways of their own, or make bytes; and no known template uses them.
_NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = {"encode", "expandtabs", "maketrans", "striptags", "to_bytes", "translate"}


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
        messages = len(variables["messages"])
        limits.begin(_SECONDS + _SECONDS_A_MESSAGE * messages, _MADE + _MADE_A_MESSAGE * messages)
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
            limits.forget()


def _sentence(error: Exception) -> str:
    text = shown(error).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Generator(CodeGenerator):
    """Writes templates' Python, with buffers that have a limit; Jinja's own are plain lists."""

    def buffer(self, frame: Frame) -> None:
        """Begin what a macro or a block writes."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.new_buffer()")


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

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "checked value") if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "checked value") if node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Namespace(Namespace):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        content = dict(*arguments, **named)
        limits.keep(content)
        super().__init__(content)

    def __setitem__(self, name: str, value: Any) -> None:
        content = object.__getattribute__(self, "_Namespace__attrs")
        limits.keep(value, content.get(name, ()))
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
    concat = staticmethod(concatenated)
    code_generator_class = _Generator
    new_buffer = Buffer

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
            "checked value": checked,
            "counted items": counted,
            "concatenated parts": concatenated,
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "namespace": _Namespace,
            "dict": _Dict(),
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that may multiply, if its result is small enough."""
        limits.step()
        if operator == "%" and isinstance(left, str):
            check_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * right)
        return checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """A function, method or macro, if what it is given is small enough, and its result."""
        limits.step()
        # `str.format` comes as the sandbox's own function around it.
        subject, name = getattr(getattr(called, "__wrapped__", called), "__self__", None), getattr(called, "__name__", "")
        if subject is not None and name in _NO_METHODS:
            raise SecurityError(f"{name} is not allowed in a chat template")
        if isinstance(subject, str):
            if name == "join":
                arguments = tuple(map(bounded_list, arguments))
                subject, others = (*arguments, ())[0], (subject,)
            else:
                others = arguments
            check_call(f"str.{name}" if name.startswith("format") else name, subject, others, named)
        elif not isinstance(called, Macro):
            check_call(name, None, arguments, named)
        return checked(super().call(context, called, *arguments, **named))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given, and what it returns."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value, behind Jinja's own argument

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        limits.step()
        before, value, others = arguments[:place], arguments[place], arguments[place + 1 :]
        if name == "join":
            value = bounded_list(value)
        elif isinstance(value, Iterator):
            # As llama.cpp does; transformers' JSON has no place for what `map` gives.
            value = list(bounded(value)) if name == "tojson" else bounded(value)
        check_call(name, value, others, named)
        return checked(function(*before, value, *others, **named))

    return guarded


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
