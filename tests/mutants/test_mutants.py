"""Small faults are made where they matter, tried in a copy of the tree, and told; `make mutants` tries 300."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if os.name == "nt":
    pytest.skip("nothing is forked on Windows", allow_module_level=True)

from handbook.pages import RELIABILITY
from tests.mutants.__main__ import MARKERS, Kept, Reason, report
from tests.mutants.places import Mutant, function_at, mutants
from tests.mutants.trial import Tree, reach
from tests.mutants.verdict import Court, Verdict

_CODE = '''\
"""A module of 1 line."""
from __future__ import annotations
import functools

LIMIT = 3


@functools.lru_cache(maxsize=1)
def rest(number: int | None) -> int:
    """What is left of 3."""
    if number is None:
        raise ValueError(f"not {1 + 1}")
    return LIMIT - number


class Box:
    def half(self, *, of: int) -> float:
        def by(number: int) -> float:
            return of / number

        return [by(one) for one in (2,)][0]

    def unseen(self) -> int:
        return -5 * 2
'''
_TEST = """\
from localsteer.steering.rest import Box, rest


def test_the_rest() -> None:
    assert rest(1) == 2


def test_a_half() -> None:
    assert Box().half(of=4) == 2
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The root of a small tree: one module, and the tests that mirror it."""
    files = {
        "localsteer/steering/rest.py": _CODE,
        "tests/steering/test_rest.py": _TEST,
        "tests/steering/test_other.py": "def test_nothing() -> None:\n    pass\n",
        "pyproject.toml": "",
    }
    for folder in ("localsteer", "tests"):
        files |= {f"{folder}/__init__.py": "", f"{folder}/steering/__init__.py": ""}
    for name, text in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "source"


def _mutant(was: str, becomes: str, function: str = "rest") -> Mutant:
    code = _CODE.replace(was, becomes)
    assert code != _CODE
    return Mutant("localsteer/steering/rest.py", function, 1, was, becomes, code)


def test_a_mutant_is_made_at_each_place_where_a_fault_could_be_noticed(source: Path) -> None:
    pytest.importorskip("cosmic_ray")
    made = list(mutants(source, ["steering"]))
    # No annotation, star of a signature, decorator or message among them. `is None`: the whole condition, and the comparison.
    assert sorted((one.function, one.was) for one in made) == [
        ("", "LIMIT = 3"),
        ("Box.half", "return [by(one) for one in (2,)][0]"),
        ("Box.half", "return [by(one) for one in (2,)][0]"),
        ("Box.half.<locals>.by", "return of / number"),
        *[("Box.unseen", "return -5 * 2")] * 4,
        ("rest", "if number is None:"),
        ("rest", "if number is None:"),
        ("rest", "return LIMIT - number"),
    ]
    assert all(one.was != one.becomes for one in made)
    assert list(mutants(source, ["steering"])) == made


def test_the_order_stays_where_lines_move(source: Path) -> None:
    pytest.importorskip("cosmic_ray")
    before = [one.becomes for one in mutants(source, ["steering"])]
    (source / "localsteer/steering/rest.py").write_text(_CODE.replace("import functools\n", "import functools\n\n# more\n"))
    assert [one.becomes for one in mutants(source, ["steering"])] == before


def test_a_line_belongs_to_the_function_around_it() -> None:
    lines = _CODE.splitlines()
    names = {text: function_at(_CODE, lines.index(text) + 1) for text in lines if text}
    assert names["LIMIT = 3"] == names["class Box:"] == names["@functools.lru_cache(maxsize=1)"] == ""
    assert names["    return LIMIT - number"] == "rest"
    assert names["            return of / number"] == "Box.half.<locals>.by"
    assert names["        return -5 * 2"] == "Box.unseen"


def test_the_tests_that_call_a_function_try_it(source: Path, tmp_path: Path) -> None:
    tree, said = Tree(source, tmp_path / "copy"), list[str]()
    reached = reach(tree, ["steering"], tmp_path / "reach.json", said.append)
    assert len(said) == 2
    assert reach(tree, ["steering"], tmp_path / "reach.json", said.append) == reached
    assert len(said) == 2
    court = Court(tree, reached)
    mirror, other = "tests/steering/test_rest.py", "tests/steering/test_other.py"
    assert court.tests_of(_mutant("LIMIT -", "LIMIT +")) == ([f"{mirror}::test_the_rest"], [])
    assert court.tests_of(_mutant("-5", "+5", "Box.unseen")) == ([], [])
    own, others = court.tests_of(_mutant("LIMIT = 3", "LIMIT = 4", ""))
    assert len(own) == 2
    assert others == [f"{other}::test_nothing"]

    assert court.judge(_mutant("LIMIT -", "LIMIT +")) == Verdict("mirror", f"{mirror}::test_the_rest", "failed")
    assert court.judge(_mutant("LIMIT = 3", "LIMIT = NONE", "")) == Verdict("mirror", mirror, "failed")
    assert court.judge(_mutant("-5", "+5", "Box.unseen")) == Verdict("")
    dies = _mutant("return of / number", "import os; os.abort()", "Box.half.<locals>.by")
    assert court.judge(dies) == Verdict("mirror", f"{mirror}::test_a_half", "died")
    # The copy is as it was, and the tree itself never was another.
    for root in (source, tree.root):
        assert (root / "localsteer/steering/rest.py").read_text() == _CODE


def test_a_test_that_never_ends_catches(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutants.trial._HANGS", 1)
    loops = _mutant("return LIMIT - number", "while True: pass")
    ran = Tree(source, tmp_path / "copy").run(["tests/steering/test_rest.py"], mutated=(loops.path, loops.code))
    assert (ran.failed, ran.how) == ("tests/steering/test_rest.py::test_the_rest", "hung")


def test_tests_that_fail_anyway_are_told_before_any_mutant(source: Path, tmp_path: Path) -> None:
    (source / "tests/steering/test_other.py").write_text("def test_nothing() -> None:\n    assert False\n")
    with pytest.raises(RuntimeError, match="test_nothing failed without any mutant"):
        reach(Tree(source, tmp_path / "copy"), ["steering"], tmp_path / "reach.json", print)


def test_what_was_caught_stays_known_and_what_survived_is_tried_by_new_tests(tmp_path: Path) -> None:
    caught, lives = _mutant("LIMIT -", "LIMIT +"), _mutant("-5", "+5", "Box.unseen")
    kept = Kept(tmp_path / "verdicts.jsonl", "old")
    kept.add(caught, Verdict("mirror", "test", "failed"))
    kept.add(lives, Verdict(""))
    assert Kept(tmp_path / "verdicts.jsonl", "old").get(lives) == Verdict("")
    kept = Kept(tmp_path / "verdicts.jsonl", "new")
    assert kept.get(caught) == Verdict("mirror", "test", "failed")
    assert kept.get(lives) is None


def test_survivors_are_told_with_their_reasons() -> None:
    caught, lives, unknown = (
        _mutant("LIMIT -", "LIMIT +"),
        _mutant("-5", "+5", "Box.unseen"),
        _mutant("[0]", "[ -1]", "Box.half"),
    )
    known = [Reason(lives.path, "Box.unseen", "-5", "+5", "nobody asks")]
    told = report([(caught, Verdict("mirror", "t", "failed")), (lives, Verdict("")), (unknown, Verdict(""))], known)
    assert "1 of 3 mutants are caught (33.3 %)" in told
    assert "| steering | 3 | 1 | 0 | 0 | 0 | 2 | 33 % |" in told
    assert "| `steering/rest.py` `Box.unseen` | `-5` | `+5` | nobody asks |" in told
    assert "| `steering/rest.py` `Box.half` | `[0]` | `[ -1]` | no test looks at it yet |" in told


def test_the_page_has_a_place_for_what_is_found() -> None:
    text = RELIABILITY.read_text(encoding="utf-8")
    assert text.index(MARKERS[0]) < text.index(MARKERS[1])
