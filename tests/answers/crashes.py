"""Kills processes that write to one store, and reads what they left behind.

    python tests/answers/crashes.py FOLDER RESTARTS        # prints what it found as JSON

Every restart is a fork that opens the store anew and is killed (SIGKILL) at a random moment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from recollect.answers import Answers, Ledger
from recollect.answers.decision import Decision, Verdict
from recollect.answers.encoders.ngram import NgramEncoder

QUESTIONS = 150
ENCODER = NgramEncoder()  # made once, not in every fork
Answers(encoder=ENCODER, decision=object()).close()


class Nearest:
    """Hits the nearest candidate: a decision so that the store keeps vectors."""

    def decide(self, candidates, context):
        if not candidates:
            return Decision(Verdict.MISS, None, "nothing near")
        return Decision(Verdict.HIT, candidates[0].entry_id, "nearest")


def request(number: int) -> dict:
    """One of 150 questions: later numbers replace the answers of earlier ones."""
    text = f"question {number % QUESTIONS}"
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def response(number: int) -> bytes:
    """Long enough for several pages, and different for every number."""
    text = f"answer {number} " * (200 + number % 300)
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]}).encode()


def opened(folder: Path, **arguments) -> Answers:
    store, ledger = folder / "answers.db", str(folder / "answers.ledger")
    return Answers(f"sqlite:///{store}", secret=b"crash", ledger=ledger, **arguments)


def write_until_killed(folder: Path, first: int, say: int) -> None:
    """Store entry after entry; the number of each is said once it is stored."""
    answers = opened(folder, encoder=ENCODER, decision=Nearest(), capacity=10**9)
    number = first
    while True:
        stored = answers.store(request(number), response(number), scope_id="alice")
        os.write(say, f"{number} {int(bool(stored))}\n".encode())
        number += 1


def crash(folder: Path, restarts: int, seed: int = 0) -> dict:
    """Restart so often, then check everything.

    In the result `lost` counts questions whose last acknowledged answer is neither stored nor
    replaced by a later one, `wrong` stored answers that nobody wrote so.
    """
    rng = random.Random(seed)
    said: list[int] = []
    for _ in range(restarts):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(folder, said[-1] + 2 if said else 0, write)
            finally:
                os._exit(1)
        os.close(write)
        text = os.read(read, 4096) if rng.random() < 0.9 else b""  # some die while opening
        time.sleep(rng.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while piece := os.read(read, 65_536):
            text += piece
        os.close(read)
        for line in text.decode().splitlines():
            number, stored = line.split()
            assert stored == "1", f"entry {number} was not stored"
            said.append(int(number))
    return {"restarts": restarts, "acknowledged": len(said), **inspect(folder, said)}


def inspect(folder: Path, said: list[int]) -> dict:
    """What is lost, wrong, and whether ledger and index are whole."""
    answers = opened(folder, encoder=ENCODER, decision=Nearest())
    last = {number % QUESTIONS: number for number in said}
    lost = wrong = 0
    for number in last.values():
        lookup = answers.lookup(request(number), scope_id="alice")
        lost += lookup.tier != "exact" or _number(lookup.response) < number
    entries = list(answers._backend.scan())
    for entry in entries:
        number = _number(entry.response)
        right = entry.response == response(number)
        wrong += not right or entry.query != request(number)["messages"][0]["content"]
    found = {
        "lost": lost,
        "wrong": wrong,
        "damaged": answers._backend.damaged,
        "index": len(answers._semantic),
        "entries": len(entries),
    }
    answers.close()
    ledger = Ledger(folder / "answers.ledger")
    ledger.append("checked", 0.0)
    found["ledger_whole"] = ledger.verify().broken_at is None
    ledger.close()
    return found


def _number(body: bytes) -> int:
    return int(json.loads(body)["choices"][0]["message"]["content"].split()[1])


if __name__ == "__main__":
    print(json.dumps(crash(Path(sys.argv[1]), int(sys.argv[2]))))
