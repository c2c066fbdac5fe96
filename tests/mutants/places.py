"""Small faults in the code, by the operators of cosmic-ray: which there are, and which of them are tried first."""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("steering", "vector", "policy", "calibration", "engine")
SEED = 20261129

# One of a group becomes another one of it: + for << would be caught by any test that comes along there, by a TypeError.
_GROUPS = (("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"), ("BitOr", "BitAnd", "BitXor"), ("LShift", "RShift"))
# What mostly differs in nothing, and is a matter of style: a value is None, True or an enum's.
_SAME = {("Eq", "Is"), ("Is", "Eq"), ("NotEq", "IsNot"), ("IsNot", "NotEq")}
_UNARY = ("USub_UAdd", "Delete_USub", "Delete_Not", "Delete_Invert")
_OTHERS = (
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop"),
)
# What cosmic-ray writes in the place of an exception that is caught; ours is known everywhere, and raised by nobody here.
_NEVER_RAISED = ("CosmicRayTestingException", "StopAsyncIteration")


@dataclass(frozen=True)
class Mutant:
    """A file with one small fault.

    Attributes:
        path: of the file, from the root of the tree.
        function: by its qualified name; "" for what is run when the module is imported.
        line: counted from 1.
        was: the line, without its indentation.
        becomes: what it is now.
        code: all of the file.
    """

    path: str
    function: str
    line: int
    was: str
    becomes: str
    code: str

    @property
    def room(self) -> str:
        """The package of `localsteer` that it is in."""
        return self.path.split("/")[1]

    @property
    def key(self) -> str:
        """It, and no other one."""
        return hashlib.sha256(f"{self.path}\n{self.code}".encode()).hexdigest()[:16]


def operators() -> dict[str, type]:
    """Those of cosmic-ray's that are used, by name.

    Left out are RemoveDecorator, VariableReplacer and VariableInserter: without a decorator a dataclass or property is another
    thing altogether, and the other two put random numbers in the place of variables.
    """
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    names = [name for name in provider if name in _OTHERS or name.removeprefix("ReplaceUnaryOperator_") in _UNARY]
    for group in _GROUPS:
        names += [f"ReplaceBinaryOperator_{old}_{new}" for old, new in itertools.permutations(group, 2)]
    for name in provider:
        if found := re.fullmatch("ReplaceComparisonOperator_([A-Za-z]+)_([A-Za-z]+)", name):
            names += [name] if (found[1], found[2]) not in _SAME else []
    return {name: provider[name] for name in names}


def mutants(root: Path, rooms: Sequence[str] = ROOMS) -> Iterator[Mutant]:
    """One for each place where there can be any, in an order that is random and always the same.

    Every beginning of it has of each room the share that the room has of all places. A place's order and which of its mutants is
    taken hang on its line alone: what is changed elsewhere changes neither.
    """
    found: list[tuple[float, str, Path, tuple[int, int], list[tuple[str, int]]]] = []
    for room in rooms:
        places = []
        for file in sorted((root / "localsteer" / room).glob("*.py")):
            code = file.read_text(encoding="utf-8")
            lines, equal = code.splitlines(), Counter[tuple[str, int]]()
            for place, changes in sorted(_places(code).items()):
                looks = lines[place[0] - 1].strip(), place[1]
                equal[looks] += 1
                places.append((_hash(room, file.name, *map(str, looks), str(equal[looks])), file, place, changes))
        places.sort(key=lambda one: one[0])
        found += [((rank + 0.5) / len(places), *one) for rank, one in enumerate(places)]
    for _, drawn, file, place, changes in sorted(found, key=lambda one: one[:2]):
        yield from itertools.islice(_made(root, file, place, sorted(changes, key=lambda one: _hash(drawn, *map(str, one)))), 1)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join((str(SEED), *texts)).encode()).hexdigest()


def _places(code: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Line and column of each place, and what can be done there: an operator, and its how-manieth occurrence in the file."""
    from cosmic_ray.ast import ast_nodes, get_ast

    marks = {"+", "-", "*", "/", "//", "%", "**", "<<", ">>", "|", "&", "^"}
    plain = {"name", "newline", "string", "endmarker", "fstring_string", "fstring_start", "fstring_end"}
    nodes = [one for one in ast_nodes(get_ast(code)) if one.type not in plain and (one.type != "operator" or one.value in marks)]
    left_out = _left_out(code)
    # The star in a signature is no sign of arithmetic, but cosmic-ray counts it as one.
    stars = {one.start_pos for one in nodes if one.type == "operator" and one.parent.type in ("parameters", "lambdef", "param")}
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name, operator in operators().items():
        places = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for number, start in enumerate(places):
            if start not in stars and not any(first <= start < last for first, last in left_out):
                found.setdefault(start, []).append((name, number))
    return found


def _left_out(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where nothing is changed: annotations, decorators, what errors say, and imports for types alone."""
    spans, lines = [], code.splitlines()
    for node in ast.walk(ast.parse(code)):
        inner: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner += node.decorator_list
        if isinstance(node, ast.FunctionDef):
            inner.append(node.returns)
        if isinstance(node, ast.arg | ast.AnnAssign):
            inner.append(node.annotation)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            inner.append(node)
        for one in inner:
            if isinstance(one, ast.expr | ast.stmt) and one.end_lineno is not None and one.end_col_offset is not None:
                ends = ((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset))
                # `ast` counts bytes, and parso characters.
                first, last = ((line, len(lines[line - 1].encode()[:column].decode())) for line, column in ends)
                spans.append((first, last))
    return spans


def _made(root: Path, file: Path, place: tuple[int, int], changes: Sequence[tuple[str, int]]) -> Iterator[Mutant]:
    """Those that Python can read, and that mean something else."""
    from cosmic_ray.mutating import mutate_code

    code = file.read_text(encoding="utf-8")
    for name, number in changes:
        mutated = mutate_code(code, operators()[name](), number).replace(*_NEVER_RAISED)
        try:
            if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(code)):
                continue
        except SyntaxError:
            continue
        was, becomes = (text.splitlines()[place[0] - 1].strip() for text in (code, mutated))
        yield Mutant(file.relative_to(root).as_posix(), function_at(code, place[0]), place[0], was, becomes, mutated)


def function_at(code: str, line: int) -> str:
    """The innermost function around a line, as `co_qualname` calls it; "" where there is none, or its head is meant."""

    def within(node: ast.AST, name: str, inside: bool) -> str:
        best = name if inside else ""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert child.end_lineno is not None
                is_function = not isinstance(child, ast.ClassDef)
                if (child.body[0].lineno if is_function else child.lineno) <= line <= child.end_lineno:
                    prefix = f"{name}.<locals>." if inside else (f"{name}." if name else "")
                    return within(child, prefix + child.name, is_function)
            elif (child_best := within(child, name, inside)) != best:
                return child_best
        return best

    return within(ast.parse(code), "", False)
