from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.errors import LocalsteerError, VectorError
from localsteer.llama.model import Model
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.server.steerings import (
    SteeringError,
    Steerings,
    UnbuiltVectorError,
    UnknownModelError,
    load_presets,
    parse_requested,
)
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import NOTHING, parse_steering
from localsteer.vector.file import write_vector
from tests.calibration.made import calibrated
from tests.server.conftest import tiny_vector


@pytest.fixture
def steerings(tiny: Model, folder: Path) -> Steerings:
    return Steerings(tiny, "demo", folder=folder, presets={"cheerful": parse_steering("0.6 happy")})


def expression_of(steerings: Steerings, name: str) -> str | None:
    """The steering of a model's name in its canonical form; None where it asks for nothing."""
    expression = steerings.of_model_name(name)
    if expression is None:
        return None
    plan = steerings.plan(expression)
    return str(plan.steering) if plan is not None else ""


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("demo", None),
        ("demo:latest", None),
        ("demo:happy", "happy"),
        ("demo:happy:latest", "happy"),
        ("demo:happy=0.5", "0.5 happy"),
        ("demo:happy=0.5,formal@2-3=-0.3", "0.5 happy - 0.3 formal@2-3"),
        ("demo:happy=.5, formal=1e-1:latest", "0.5 happy + 0.1 formal"),
        ("demo:happy=-1", "-happy"),
        ("demo:happy=+2", "2 happy"),
        ("demo:happy=0", "0 happy"),
        ("demo:cheerful", "0.6 happy"),
        ("demo:cheerful:latest", "0.6 happy"),
    ],
)
def test_a_models_name_says_how_to_steer(steerings: Steerings, name: str, expression: str | None) -> None:
    assert expression_of(steerings, name) == expression


@pytest.mark.parametrize(
    "name", ["", "Demo", "dem", "demo2", "demolatest", "gpt-4o", ":happy", "other:happy", " demo", "demo ", "demo/happy"]
)
def test_another_models_name_is_unknown(steerings: Steerings, name: str) -> None:
    with pytest.raises(UnknownModelError, match="This server has demo, demo:cheerful"):
        steerings.of_model_name(name)


def test_the_own_name_may_hold_colons_and_slashes(tiny: Model, folder: Path) -> None:
    steerings = Steerings(tiny, "someone/qwen:0.5b", folder=folder)
    assert steerings.of_model_name("someone/qwen:0.5b") is None
    assert steerings.of_model_name("someone/qwen:0.5b:latest") is None
    assert expression_of(steerings, "someone/qwen:0.5b:happy=0.25") == "0.25 happy"
    with pytest.raises(UnknownModelError):
        steerings.of_model_name("someone/qwen")


@pytest.mark.parametrize(
    "name",
    [
        "demo:",
        "demo:,",
        "demo:=0.5",
        "demo:happy=",
        "demo:happy=much",
        "demo:happy=0.5,",
        "demo:happy==0.5",
        "demo:happy=nan",
        "demo:happy=inf",
        "demo:happy=-infinity",
        "demo:happy=1e999",
        "demo:happy=1e300",
        "demo:happy=0x1",
        "demo:0.5",
        "demo:!happy",
        'demo:"happy',
        "demo:happy@0=1",
        "demo:happy@3-1=1",
        "demo:happy@2-99=1",
        "demo:happy=9",
        "demo:latest:latest:latest",
        "demo:Cheerful",
        "demo:nothing-like-it",
        "demo:\0",
        "demo:\ud800",
    ],
)
def test_what_is_no_steering_in_a_models_name_is_refused(steerings: Steerings, name: str) -> None:
    with pytest.raises(LocalsteerError) as refused:
        expression_of(steerings, name)
    assert not isinstance(refused.value, UnknownModelError)


@pytest.mark.parametrize("name", ["demo:happy + 8 formal=0.5", "demo:happy - 0.5 mood", "demo:happy\t-\n2 mood=1"])
def test_a_model_name_holds_one_vector_between_its_commas(steerings: Steerings, name: str) -> None:
    with pytest.raises(SteeringError, match="is no steering"):
        expression_of(steerings, name)


def test_an_unknown_vector_is_told_with_the_nearest_names(steerings: Steerings) -> None:
    with pytest.raises(VectorError, match=r'There is no vector "hapy"\. Did you mean happy( or (?!happy)|\?)'):
        steerings.plan(parse_steering("0.5 hapy"))
    with pytest.raises(VectorError, match=r'There is no vector "xqzwv"\. GET /v1/vectors lists them'):
        steerings.plan(parse_steering("xqzwv"))


@pytest.mark.parametrize(
    "name", ["./happy.gguf", "/etc/passwd", "happy.gguf", "../happy", "a\\b", '"a folder/x"', "~/happy", "C:\\x", "//host/share"]
)
def test_a_path_is_refused_whether_there_is_a_file_or_not(
    steerings: Steerings, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SteeringError, match="can only name vectors"):
        steerings.plan(parse_requested(f"0.5 {name}"))
    with pytest.raises(VectorError, match="There is no vector"):
        steerings.vector(name.strip('"'))


def test_too_much_is_refused(steerings: Steerings) -> None:
    assert steerings.plan(parse_requested(" + ".join(["0.1 happy"] * 8))) is not None
    with pytest.raises(SteeringError, match="9 terms, and 8 are allowed"):
        steerings.plan(parse_steering(" + ".join(["0.1 happy"] * 9)))
    assert steerings.plan(parse_steering("-8 happy")) is not None
    for expression in ("8.001 happy", "-8.001 happy", "happy - 1e30 formal"):
        with pytest.raises(SteeringError, match="stronger than 8"):
            steerings.plan(parse_steering(expression))
    with pytest.raises(SteeringError, match="too long"):
        parse_requested("happy " + " " * 1000)


def test_max_dose_limits_the_dose_of_any_expression(tiny: Model, folder: Path) -> None:
    limit = DoseLimit(0.5, read_hidden_norm(tiny))
    steerings = Steerings(tiny, "demo", folder=folder, limit=limit)
    (strong,) = [plan for plan in [Steerings(tiny, "demo", folder=folder).plan(parse_steering("happy"))] if plan is not None]
    fitting = 0.4 / limit.dose_of(strong.edit)
    for _ in range(2):  # the second time from what is kept
        assert steerings.plan(parse_steering(f"{fitting} happy")) is not None
        for mode in ("response", "prompt"):
            with pytest.raises(LocalsteerError, match=r"--max-dose allows 0\.5"):
                steerings.plan(parse_steering(f"{2 * fitting} happy"), mode)
    with pytest.raises(LocalsteerError, match="--max-dose"):
        steerings.default = parse_steering(f"{2 * fitting} happy")
    assert not steerings.default
    with pytest.raises(LocalsteerError, match="--max-dose"):
        Steerings(tiny, "demo", folder=folder, limit=limit, default=parse_steering(f"{2 * fitting} happy"))


def test_the_same_expression_is_the_same_plan(steerings: Steerings) -> None:
    plan = steerings.plan(parse_steering("0.5 happy + 0.25 formal"))
    assert steerings.plan(parse_steering("  0.5*happy+.25 formal")) is plan
    assert steerings.plan(parse_steering("0.5 happy + 0.25 formal"), "prompt") is not plan
    for number in range(100):
        steerings.plan(parse_steering(f"0.{number:02}1 happy"))
    again = steerings.plan(parse_steering("0.5 happy + 0.25 formal"))
    assert again is not None
    assert plan is not None
    assert (again.edit.added == plan.edit.added).all()


def test_the_empty_expression_steers_nothing(steerings: Steerings) -> None:
    for expression in ("", " ", "\n"):
        assert steerings.plan(parse_requested(expression)) is None


def test_a_vector_of_the_folder_comes_before_one_of_the_library(steerings: Steerings) -> None:
    assert steerings.vector("happy").provenance.description == "made for tests"
    listed = {str(one["id"]): one for one in steerings.list_vectors()}
    assert listed["happy"]["description"] == "made for tests"
    assert listed["happy"]["state"] == "ready"
    assert listed["mood"] == {
        "id": "mood",
        "object": "vector",
        "positive": "up",
        "negative": "down",
        "description": "made for tests",
        "state": "ready",
        "calibrated": False,
        "dosed": False,
        "tried": None,
    }
    assert list(listed) == sorted(listed)
    shipped = next(name for name in listed if name not in ("happy", "formal", "calm", "mood"))
    assert listed[shipped]["state"] == "built at first use"


def test_whether_a_vector_is_calibrated_is_listed(tiny: Model, tmp_path: Path) -> None:
    write_vector(calibrated(tiny.fingerprint), tmp_path / "loud.gguf")
    steerings = Steerings(tiny, "demo", folder=tmp_path)
    assert [one["calibrated"] for one in steerings.list_vectors() if one["id"] == "loud"] == [True]


def test_what_cannot_be_used_is_not_listed(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    (tmp_path / "text.txt").write_text("no vector")
    write_vector(tiny_vector(tiny, 1), tmp_path / "good.gguf")
    own = {one["id"] for one in Steerings(tiny, "demo", folder=tmp_path).list_vectors()}
    assert "good" in own
    assert not own & {"torn", "text"}


def test_a_default_that_cannot_be_used_leaves_the_one_before(steerings: Steerings) -> None:
    steerings.default = parse_requested(" .5*happy - formal ")
    for wrong in ("0.5 hapy", "./x.gguf", "9 happy"):
        with pytest.raises(LocalsteerError):
            steerings.default = parse_steering(wrong)
        assert str(steerings.default) == "0.5 happy - formal"
    steerings.default = NOTHING
    assert not steerings.default


def test_a_folder_that_is_not_there_is_told_at_once(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="is not a folder"):
        Steerings(tiny, "demo", folder=tmp_path / "gone")


def test_what_is_not_built_yet_is_told_and_not_built_on_the_way(steerings: Steerings) -> None:
    assert steerings.find("french") is None
    with pytest.raises(UnbuiltVectorError, match="french") as refused:
        steerings.plan(parse_steering("0.5 happy + french"))
    assert refused.value.hint is not None
    assert "POST /v1/vectors/french" in refused.value.hint
    steerings.build("french")
    assert steerings.plan(parse_steering("0.5 happy + french")) is not None


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "presets.yaml"
    path.write_text(text)
    return path


def test_presets_are_names_for_expressions(tmp_path: Path) -> None:
    path = written(tmp_path, 'presets:\n  cheerful: "0.6 happy"\n  Stiff-2.0_x: formal - happy\n  plain: ""\n')
    found = {name: str(steering) for name, steering in load_presets(path).items()}
    assert found == {"cheerful": "0.6 happy", "Stiff-2.0_x": "formal - happy", "plain": ""}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("presets:\n  a: happy\n  latest: happy\n", ("line 3", "Ollama")),
        ('presets:\n  "a=1": happy\n', ("line 2",)),
        ('presets:\n  "a,b": happy\n', ("line 2",)),
        ('presets:\n  "a:b": happy\n', ("line 2",)),
        ('presets:\n  "": happy\n', ("line 2",)),
        ("presets:\n  a: happy\n  b: 0.5 happy 2\n", ("line 3",)),
        ("presets:\n  a: ./happy.gguf\n", ("line 2", "can only name vectors")),
        ("presets:\n  a: 9 happy\n", ("line 2", "stronger than 8")),
        ("presets:\n  a: [happy]\n", ("line 2",)),
        ("presets:\n  a: 1\n", ("line 2",)),
        ("presets: []\n", ("presets",)),
        ("preset:\n  a: happy\n", ("line 1", "preset")),
        ("presets: {\n", ("not valid YAML",)),
        ("", ("presets",)),
        ("- a\n", ()),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SteeringError) as refused:
        load_presets(written(tmp_path, text))
    for part in ("presets.yaml", *parts):
        assert part in str(refused.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"gone\.yaml"):
        load_presets(tmp_path / "gone.yaml")
