"""The audit log: a chain in which every change shows."""

from __future__ import annotations

import json
import os
import threading

import pytest

from recollect.answers import Ledger
from recollect.answers.ledger import START
from recollect.errors import StoreError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.ledger"


def written(path, count=5):
    ledger = Ledger(path)
    for number in range(count):
        ledger.append("write", float(number), entry=number)
    ledger.close()
    return path.read_text().splitlines(keepends=True)


def verified(path):
    ledger = Ledger(path)
    result = ledger.verify()
    ledger.close()
    return result


def test_events_come_back_in_order(path):
    written(path)
    ledger = Ledger(path)
    ledger.append("hit", 9.0, entry=3)
    assert [event["entry"] for event in ledger] == [0, 1, 2, 3, 4, 3]
    assert [event["event"] for event in ledger][-1] == "hit"
    assert ledger.verify() == (6, ledger.head, None)
    ledger.close()


def test_an_empty_ledger_is_whole(path):
    assert verified(path) == (0, START, None)
    assert Ledger().verify() == (0, START, None)


@pytest.mark.parametrize("change", ["edit", "remove", "insert", "swap", "first", "garbage"])
def test_every_change_shows(path, change):
    lines = written(path)
    assert verified(path).broken_at is None
    record = json.loads(lines[2])
    if change == "edit":
        lines[2] = lines[2].replace('"entry": 2', '"entry": 7')
    elif change == "remove":
        del lines[2]
    elif change == "insert":
        lines.insert(2, lines[2])
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "first":
        del lines[0]
    else:
        lines[2] = "x" * len(lines[2][:-1]) + "\n"
    path.write_text("".join(lines))
    assert verified(path).broken_at is not None, record


def test_a_cut_end_shows_to_who_kept_the_head(path):
    lines = written(path)
    head = verified(path).head
    path.write_text("".join(lines[:-1]))
    assert verified(path).broken_at is None
    assert verified(path).head != head


@pytest.mark.parametrize("kept", [1, 10, 40])
def test_a_torn_last_line_is_owned_to_and_the_chain_goes_on(path, kept):
    lines = written(path)
    path.write_text("".join(lines[:-1]) + lines[-1][:kept])
    assert verified(path).broken_at == 4
    ledger = Ledger(path)
    ledger.append("write", 9.0, entry=9)
    assert ledger.verify().broken_at is None
    assert [event["event"] for event in ledger] == ["write"] * 4 + ["recovered", "write"]
    ledger.close()
    torn = path.read_text().splitlines(keepends=True)
    torn[4] = torn[4][:-1] + "x\n"  # the torn bytes are part of the chain too
    path.write_text("".join(torn))
    assert verified(path).broken_at == 4


def test_two_processes_share_one_chain(path):
    one, two = Ledger(path), Ledger(path)
    for number in range(6):
        (one if number % 3 else two).append("write", 0.0, entry=number)
    assert one.verify() == two.verify()
    assert one.verify().lines == 6
    assert one.head == two.head
    one.close()
    two.close()


def test_many_threads_share_one_chain(path):
    ledger = Ledger(path)

    def work():
        for _ in range(50):
            ledger.append("hit", 0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify() == (200, ledger.head, None)
    ledger.close()


def test_memory_keeps_the_latest_lines_and_their_chain():
    ledger = Ledger(kept=3)
    for number in range(10):
        ledger.append("hit", 0.0, entry=number)
    assert [event["entry"] for event in ledger] == [7, 8, 9]
    assert ledger.verify() == (3, ledger.head, None)
    ledger.close()


def test_a_ledger_that_cannot_be_written_says_so(tmp_path, path):
    with pytest.raises(StoreError, match="cannot open the ledger"):
        Ledger(tmp_path / "missing" / "ledger")
    ledger = Ledger(path)
    os.close(ledger._file)
    with pytest.raises(StoreError, match="cannot write"):
        ledger.append("hit", 0.0)
    ledger._file = None
