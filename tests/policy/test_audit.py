from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from localsteer.errors import PolicyError
from localsteer.policy.audit import Action, AuditLog, Decision

FIRED = Decision(
    time="2026-11-22T18:00:00.000+00:00",
    conversation="c0ffee",
    answer=2,
    position=0,
    rule="stay-calm",
    action="fire",
    classifier="hostile",
    score=0.75,
    threshold=0.5,
    strength=1.0,
    steer="1 calm",
)
KEYS = ["time", "conversation", "answer", "position", "rule", "action", "classifier", "score", "threshold", "strength", "steer"]
LARGE = 1_000_000


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def positions(*paths: Path) -> list[int]:
    return [line["position"] for path in paths for line in lines(path)]


# A decision


def test_a_decision_becomes_a_document_without_its_empty_texts() -> None:
    document = FIRED.document()
    assert list(document) == KEYS
    assert document == {key: getattr(FIRED, key) for key in KEYS}
    full = replace(FIRED, detail="12 tokens", text="Hello").document()
    assert list(full) == [*KEYS, "detail", "text"]
    assert (full["detail"], full["text"]) == ("12 tokens", "Hello")


def test_what_is_nothing_is_left_out_and_what_is_zero_is_not() -> None:
    document = replace(FIRED, rule="", steer="", score=None, strength=0.0, threshold=0.0).document()
    assert "rule" not in document
    assert "steer" not in document
    assert document["score"] is None
    assert (document["strength"], document["threshold"], document["position"]) == (0.0, 0.0, 0)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_json_cannot_say_is_null(tmp_path: Path, score: float) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=1)
    log.write(replace(FIRED, score=score))
    assert lines(log.path)[0]["score"] is None


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (FIRED, "policy: stay-calm fired after the prompt (hostile 0.75, true from 0.50)"),
        (
            replace(FIRED, action="pass", score=0.1),
            "policy: stay-calm did not fire after the prompt (hostile 0.10, true from 0.50)",
        ),
        (replace(FIRED, action="release", position=40), "policy: stay-calm released at token 40 (hostile 0.75, true from 0.50)"),
        (
            replace(FIRED, action="rewind", position=12, detail="5 tokens"),
            "policy: stay-calm rewind at token 12 (hostile 0.75, true from 0.50; 5 tokens)",
        ),
        (replace(FIRED, action="rewinds exhausted", position=9), "policy: stay-calm rewinds exhausted at token 9 (hostile 0.75"),
        (
            replace(FIRED, action="error", rule="", score=None, detail="it is gone"),
            "policy: error after the prompt (hostile, true from 0.50; it is gone)",
        ),
    ],
)
def test_a_decision_tells_people_what_when_and_why(decision: Decision, text: str) -> None:
    assert str(decision).startswith(text)


# The file


def test_every_decision_is_a_line_and_is_there_at_once(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=5)
    assert log.path.read_bytes() == b""
    actions: list[Action] = ["pass", "fire", "release", "rewind", "rewinds exhausted", "error"]
    for number, action in enumerate(actions, 1):
        log.write(replace(FIRED, action=action))
        assert [line["action"] for line in lines(log.path)] == actions[:number]
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]


@pytest.mark.parametrize("text", ["a\nb\r\n\u2028c", "größe 🙂 密码", "half \ud800 character", "\0\x1b[31m\x7f", '"\\'])
def test_any_text_stays_in_its_line_and_comes_back(tmp_path: Path, text: str) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=5)
    log.write(replace(FIRED, text=text, detail=text))
    log.write(FIRED)
    assert log.path.read_bytes().isascii()
    first, second = lines(log.path)
    assert (first["text"], first["detail"]) == (text, text)
    assert "text" not in second


def test_an_old_log_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        AuditLog(path, max_bytes=LARGE, files=5).write(replace(FIRED, position=number))
    assert positions(path) == [0, 1, 2]


def test_only_its_owner_may_read_a_log(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        log = AuditLog(tmp_path / "audit.jsonl", max_bytes=300, files=5)
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
        for _ in range(3):
            log.write(FIRED)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.iterdir())] == [0o600] * 3


@pytest.mark.parametrize("rest", [b'{"time": "2026', b'{"text": "gr\xc3', b"\0\0\0"])
def test_a_line_that_a_killed_process_left_unfinished_spoils_no_other(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path, max_bytes=LARGE, files=5).write(replace(FIRED, position=1))
    with path.open("ab") as file:
        file.write(rest)
    log = AuditLog(path, max_bytes=LARGE, files=5)
    log.write(replace(FIRED, position=2))
    log.write(replace(FIRED, position=3))
    first, unfinished, second, third = path.read_bytes().splitlines()
    assert unfinished == rest
    assert [json.loads(line)["position"] for line in (first, second, third)] == [1, 2, 3]


def test_a_killed_process_has_written_all_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = (
        "import os, signal, sys, pathlib\n"
        "from localsteer.policy.audit import AuditLog, Decision\n"
        f"log = AuditLog(pathlib.Path(sys.argv[1]), max_bytes={LARGE}, files=1)\n"
        "for number in range(5):\n"
        f"    log.write(Decision(**{{**{asdict(FIRED)!r}, 'position': number}}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert result.returncode != 0
    assert positions(path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("moved", [True, False])
def test_a_log_that_someone_removes_or_moves_begins_anew(tmp_path: Path, moved: bool) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=5)
    log.write(replace(FIRED, position=1))
    if moved:
        log.path.rename(tmp_path / "kept.jsonl")
    else:
        log.path.unlink()
    log.write(replace(FIRED, position=2))
    assert positions(log.path) == [2]
    assert not moved or positions(tmp_path / "kept.jsonl") == [1]


# Rotation


def test_a_full_log_becomes_an_older_one_and_none_loses_a_line(tmp_path: Path) -> None:
    size = len(json.dumps(FIRED.document())) + 1
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=3 * size + 1, files=4)
    for number in range(10, 23):
        log.write(replace(FIRED, position=number % 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.jsonl", *(f"audit.jsonl.{n}" for n in (1, 2, 3, 4))]
    assert positions(*(numbered(log.path, number) for number in (4, 3, 2, 1)), log.path) == [
        number % 10 for number in range(10, 23)
    ]
    assert all(path.stat().st_size <= log.max_bytes for path in tmp_path.iterdir())
    assert [len(lines(numbered(log.path, number))) for number in (1, 2, 3, 4)] == [3] * 4


@pytest.mark.parametrize("files", [1, 2, 5])
def test_so_many_older_ones_are_kept_and_these_are_the_latest(tmp_path: Path, files: int) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=10, files=files)
    for number in range(8):
        log.write(replace(FIRED, position=number))
    kept = [*(numbered(log.path, number) for number in range(files, 0, -1)), log.path]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in kept}
    assert positions(*kept) == list(range(8))[-files - 1 :]


def test_a_line_larger_than_a_log_is_written_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=1000, files=3)
    log.write(replace(FIRED, position=1))
    log.write(replace(FIRED, position=2, text="x" * 5000))
    log.write(replace(FIRED, position=3))
    assert positions(numbered(log.path, 2), numbered(log.path, 1), log.path) == [1, 2, 3]


def test_an_empty_log_is_not_kept_as_an_older_one(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=10, files=3)
    log.write(replace(FIRED, position=1))
    assert positions(log.path) == [1]
    assert list(tmp_path.iterdir()) == [log.path]


def test_a_log_that_is_too_large_already_is_rotated_at_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(10):
        AuditLog(path, max_bytes=LARGE, files=2).write(replace(FIRED, position=number))
    AuditLog(path, max_bytes=1000, files=2).write(replace(FIRED, position=10))
    assert positions(path) == [10]
    assert positions(numbered(path, 1)) == list(range(10))


def test_an_older_log_that_is_missing_in_between_stops_nothing(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=10, files=4)
    for number in range(4):
        log.write(replace(FIRED, position=number))
    numbered(log.path, 2).unlink()
    log.write(replace(FIRED, position=4))
    assert positions(numbered(log.path, 4), numbered(log.path, 2), numbered(log.path, 1), log.path) == [0, 2, 3, 4]


def test_an_unfinished_line_stays_with_the_log_that_it_is_in(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    torn = json.dumps(FIRED.document()).encode()[:-20]
    path.write_bytes(torn)
    AuditLog(path, max_bytes=300, files=4).write(FIRED)
    assert lines(path) == [FIRED.document()]
    assert numbered(path, 1).read_bytes() == torn


# Several writers


def test_two_logs_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logs = [AuditLog(path, max_bytes=1000, files=40) for _ in range(2)]
    for number in range(60):
        logs[number % 2].write(replace(FIRED, position=number))
    older = sorted(tmp_path.glob("audit.jsonl.*"), key=lambda one: -int(one.suffix[1:]))
    assert len(older) > 10
    assert positions(*older, path) == list(range(60))


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write(answer: int) -> None:
        log = AuditLog(path, max_bytes=10 * LARGE, files=5)
        for number in range(50):
            log.write(replace(FIRED, answer=answer, position=number, text="x" * 500 * answer))

    threads = [threading.Thread(target=write, args=(answer,)) for answer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = lines(path)
    for answer in range(4):
        assert [line["position"] for line in written if line["answer"] == answer] == list(range(50))


# What is no log

LOGGED = json.dumps(FIRED.document())
FOREIGN = [
    "My thesis.\n" * 300,
    "x",
    "\n" + LOGGED,
    "{}\n",
    json.dumps({"time": "2026-11-22T18:00:00", "level": "INFO", "message": "another program's log"}) + "\n",
    json.dumps({"first": "no decision"}) + "\n" + LOGGED,
    "\0" * 5000,
    "\ufeff" + LOGGED,
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
@pytest.mark.parametrize("suffix", ["", ".1", ".3"])
def test_a_file_that_is_no_log_is_refused_by_name_and_left_alone(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / "thesis.txt"
    foreign = tmp_path / f"thesis.txt{suffix}"
    if suffix:
        path.write_text(f"{LOGGED}\n" * 20)
    foreign.write_text(text)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(PolicyError) as caught:
            AuditLog(path, max_bytes=1000, files=3)
        assert str(foreign) in caught.value.message
        assert "`audit:`" in (caught.value.hint or "")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("suffix", ["", ".1"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, linked: bool, suffix: str) -> None:
    place = tmp_path / f"audit.jsonl{suffix}"
    thing = tmp_path / "thing" if linked else place
    if kind == "folder":
        thing.mkdir()
    elif kind == "pipe":
        os.mkfifo(thing)
    else:
        thing.symlink_to("/dev/null")
    if linked:
        place.symlink_to(thing)
    with pytest.raises(PolicyError) as caught:
        AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=2)
    assert str(place) in caught.value.message


def test_a_link_to_a_log_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere" / "log")
    for position in (1, 2):
        AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=2).write(replace(FIRED, position=position))
    assert positions(tmp_path / "elsewhere" / "log") == [1, 2]


def test_arming_moves_no_log_however_large(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for name in ("audit.jsonl", "audit.jsonl.1"):
        (tmp_path / name).write_text(f"{LOGGED}\n" * 20)
    before = contents(tmp_path)
    for _ in range(3):
        AuditLog(path, max_bytes=1000, files=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", ["", ".1", ".2"])
def test_a_file_that_comes_into_the_way_later_is_left_alone_and_told_once(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=10, files=2)
    log.write(replace(FIRED, position=1))
    foreign = tmp_path / f"audit.jsonl{suffix}"
    foreign.write_text("My thesis.\n")
    before = contents(tmp_path)
    with caplog.at_level(logging.WARNING, logger="localsteer"):
        log.write(replace(FIRED, position=2))
        log.write(replace(FIRED, position=3))
    assert len(caplog.records) == 1
    assert str(foreign) in caplog.records[0].getMessage()
    assert contents(tmp_path) == before


# What cannot be written


def test_a_log_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "audit.jsonl"
    with pytest.raises(PolicyError) as caught:
        AuditLog(path, max_bytes=LARGE, files=5)
    assert str(caught.value) == f"The audit log {path} cannot be written: No such file or directory."


def refuse(code: int) -> Any:
    def fail(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_log_in_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root, as which tests run in a container, may write to any folder.
    monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    with pytest.raises(PolicyError, match=r"audit\.jsonl cannot be written: Permission denied"):
        AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=5)


def test_a_full_disk_is_told_once_and_ends_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=LARGE, files=5)
    log.write(replace(FIRED, position=1))
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="localsteer"):
        patch.setattr(os, "write", refuse(errno.ENOSPC))
        log.write(replace(FIRED, position=2))
        log.write(replace(FIRED, position=3))
    assert [record.getMessage() for record in caplog.records] == [
        f"the audit log {log.path} cannot be written: No space left on device"
    ]
    log.write(replace(FIRED, position=4))
    assert positions(log.path) == [1, 4]


def test_a_rotation_that_fails_ends_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=10, files=1)
    log.write(replace(FIRED, position=1))
    numbered(log.path, 1).mkdir()
    with caplog.at_level(logging.WARNING, logger="localsteer"):
        log.write(replace(FIRED, position=2))
    assert len(caplog.records) == 1
    assert positions(log.path) == [1]
