"""The log of clicks: it only grows, a click is saved once, and a kill at any moment leaves it whole."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.errors import StorageError
from stages.preferences.judgements import Click
from stages.preferences.label_store import LabelStore

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "labels" / "labels.sqlite")


def click(number: int, who: str = "anna") -> Click:
    return Click(who, "q", "comment", {"text": f"\u0645 {number} \U0001f600"})


def test_clicks_come_back_in_order_with_numbers_and_times(store: LabelStore) -> None:
    assert store.clicks() == []
    assert store.append(click(1), "one") and store.append(click(2, "ben"), "two")
    first, second = store.clicks()
    assert (first.number, second.number, second.annotator) == (1, 2, "ben")
    assert first.data == click(1).data and first.time <= second.time and first.time.endswith("+00:00")
    assert store.clicks(after=1) == [second]


def test_a_click_that_is_sent_again_is_saved_once(store: LabelStore) -> None:
    assert store.append(click(1), "one")
    assert not store.append(click(1), "one")
    assert len(store.clicks()) == 1


def test_nothing_is_changed_or_removed(store: LabelStore) -> None:
    store.append(click(1), "one")
    with sqlite3.connect(store.path) as connection:
        for statement in ("UPDATE clicks SET annotator = 'eve'", "DELETE FROM clicks"):
            with pytest.raises(sqlite3.IntegrityError, match="clicks are never"):
                connection.execute(statement)
    assert store.clicks()[0].annotator == "anna"


def test_many_are_saved_together_or_not_at_all(store: LabelStore) -> None:
    assert store.append_all([(click(number), str(number)) for number in range(3)]) == 3
    bad = Click(None, "q", "skip")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="labels cannot be read or written"):
        store.append_all([(click(3), "3"), (bad, "4")])
    assert len(store.clicks()) == 3


@pytest.mark.parametrize("before", [0, 2])
def test_a_kill_in_the_middle_of_a_transaction(store: LabelStore, before: int) -> None:
    """SIGKILL between the insert and the commit, also of the first click of all, whose transaction makes the tables."""
    for number in range(before):
        store.append(click(number), str(number))
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from stages.preferences.judgements import Click\n"
        "from stages.preferences.label_store import LabelStore\n"
        "store = LabelStore(Path(sys.argv[1]))\n"
        "with store._writing() as connection:\n"
        "    connection.execute('PRAGMA cache_spill = 1')\n"
        "    for number in range(3000):\n"  # more than the cache holds, so that the file itself is being written
        '        connection.execute("INSERT INTO clicks (time, annotator, question, kind, data, id) "\n'
        "            \"VALUES ('', 'eve', 'q', 'skip', ?, ?)\", ('{}' + ' ' * 2000, str(number) + 'k'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(store.path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.path.with_name("labels.sqlite-journal").exists()  # it died in the middle of a write
    assert [found.annotator for found in store.clicks()] == ["anna"] * before
    assert store.append(click(9), "9")
    assert len(store.clicks()) == before + 1


def test_writers_wait_for_each_other(store: LabelStore) -> None:
    def write(who: str) -> None:
        for number in range(10):
            store.append(click(number, who), f"{who}/{number}")

    threads = [threading.Thread(target=write, args=(who,)) for who in ("anna", "ben", "chloe")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.clicks()
    assert len(found) == 30 and [entry.number for entry in found] == list(range(1, 31))


def test_open_questions_are_those_of_others_and_recent(store: LabelStore) -> None:
    assert store.questions_open_with_others("anna", since=0.0) == set()
    store.open_question("ben", "q", now=100.0)
    store.open_question("chloe", "r", now=200.0)
    store.open_question("ben", "s", now=300.0)  # he has one before him at a time
    assert store.questions_open_with_others("anna", since=150.0) == {"r", "s"}
    assert store.questions_open_with_others("anna", since=250.0) == {"s"}
    assert store.questions_open_with_others("ben", since=0.0) == {"r"}


def test_what_is_no_log_of_clicks_is_refused(store: LabelStore) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"")
    assert store.clicks() == []
    store.path.write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(StorageError, match=r"labels\.sqlite: the labels cannot be read or written \(file is not a"):
        store.clicks()
    os.unlink(store.path)
    store.append(click(1), "one")
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StorageError, match=r"written by a later version of rlhf \(format 7"):
        store.clicks()
