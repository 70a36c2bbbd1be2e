"""A real engine: the text never depends on the store, and hits happen where they should."""

import json
import random
import time

import pytest

CHUNK, BLOCK = 64, 32


def prompt(seed, length):
    draw = random.Random(str(seed))
    return [draw.randrange(8, 2000) for _ in range(length)]


def texts(answers):
    return [answer["tokens"] for answer in answers]


def wait_for(condition, seconds=20):
    """Writing goes on in the background: give it time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def engine(engines):
    return engines["first"]


@pytest.fixture
def ask(engines):
    """Ask the engine with the store; the text must be the one of the engine without."""
    known = {}

    def asked(prompts, *, tokens=6, by="first", **arguments):
        wanted = []
        for one in prompts:
            name = (tuple(one), tokens)
            if name not in known:
                known[name] = texts(engines["plain"].generate([one], tokens=tokens))[0]
            wanted.append(known[name])
        answers = engines[by].generate(prompts, tokens=tokens, **arguments)
        assert texts(answers) == wanted
        return answers

    return asked


def test_cold_hit_and_longer_tail_give_the_same_text(engine, ask):
    one = prompt("cold", 300)
    assert ask([one])[0]["cached"] == 0
    assert engine.forget()
    assert ask([one])[0]["cached"] == 256  # full chunks, from the store
    engine.forget()
    assert ask([one + prompt("tail", 40)])[0]["cached"] == 256


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 128, 129, 191, 192, 193])
def test_lengths_around_blocks_and_chunks(engine, ask, length):
    one = prompt(length, length)
    ask([one], tokens=3)
    engine.forget()
    cached = ask([one], tokens=3)[0]["cached"]
    # Never the last token, whole blocks only, and no further than the last full chunk.
    assert cached == min(length // CHUNK * CHUNK, (length - 1) // BLOCK * BLOCK)


def test_a_prefix_in_the_engine_is_completed_from_the_store(engine, ask):
    """A local hit may end inside a chunk; only the missing blocks are loaded."""
    one = prompt("inside", 330)
    ask([one])
    engine.forget()
    ask([one[:97]])  # three blocks come back to the engine's own cache
    before = engine.metrics()["vllm:recollect_loaded_tokens"]
    assert ask([one])[0]["cached"] == 320
    assert engine.metrics()["vllm:recollect_loaded_tokens"] - before == 320 - 96


def test_generated_tokens_are_kept_for_the_next_turn(engine, ask):
    one = prompt("turn", 100)
    said = ask([one], tokens=40)[0]["tokens"]
    engine.forget()
    assert ask([[*one, *said, 9, 10]])[0]["cached"] == 128


def test_two_salts_share_nothing(engine, ask):
    one = prompt("salt", 200)
    ask([one], salt="a")
    engine.forget()
    assert ask([one], salt="b")[0]["cached"] == 0
    engine.forget()
    assert ask([one])[0]["cached"] == 0
    engine.forget()
    assert ask([one], salt="a")[0]["cached"] == 192


def test_many_requests_at_once_with_a_common_prefix(engine, ask):
    head = prompt("common", 256)
    prompts = [head + prompt(("own", n), 20 + 30 * n) for n in range(6)]
    ask(prompts)
    engine.forget()
    assert min(answer["cached"] for answer in ask(prompts)) >= 256


def test_preempted_requests_come_back_right(engine, ask):
    """160 blocks do not hold these at once: some are preempted, and resumed from the store."""
    prompts = [prompt(("pressure", n), 700) for n in range(7)]
    before = engine.metrics().get("vllm:num_preemptions", 0)
    ask(prompts, tokens=70)
    assert engine.metrics()["vllm:num_preemptions"] > before
    engine.forget()
    ask(prompts, tokens=70)


def test_what_one_engine_stored_another_finds(engines, ask):
    """Two engines on one store: more than 95% of what could be hit is. (One never saw it.)"""
    prompts = [prompt(("shared", n), 200 + 20 * n) for n in range(8)]
    asked = [engines["first"].generate([one], tokens=2, params={"do_remote_decode": True})
             for one in prompts]  # fmt: skip
    assert [answer[0]["params"]["recollect_chunks"] for answer in asked] == [
        len(one) // CHUNK for one in prompts
    ]
    hits = 0
    for one, (answer,) in zip(prompts, asked, strict=True):
        hits += ask([one], by="second", params=answer["params"])[0]["cached"]
    possible = sum((len(one) - 1) // CHUNK * CHUNK for one in prompts)
    assert hits > 0.95 * possible


def test_what_a_producer_announced_and_lost_is_computed(ask):
    one = prompt("never stored", 150)
    assert ask([one], by="second", params={"recollect_chunks": 2})[0]["cached"] == 0


@pytest.mark.parametrize("params", [{"recollect_chunks": x} for x in ("2", -1, True, [2], 10**9)])
def test_nonsense_from_the_client_is_no_error(ask, params):
    ask([prompt("nonsense", 40)], by="second", params=params)


def test_a_reset_of_the_connector_puts_old_entries_out_of_reach(engine, ask):
    """From here on the first engine shares nothing with the second."""
    one = prompt("reset", 200)
    ask([one])
    assert engine.forget(store=True)
    assert ask([one])[0]["cached"] == 0
    engine.forget()
    assert ask([one])[0]["cached"] == 192


def test_counters_and_log_line(engine):
    counts = engine.metrics()
    assert counts["vllm:recollect_saved_tokens"] >= CHUNK
    assert counts["vllm:recollect_loaded_bytes"] > 0
    assert counts["vllm:external_prefix_cache_hits"] > 0


SCHEDULES = [
    (seed, kinds)
    for seed, kinds in enumerate(
        [["drop"], ["delay"], ["corrupt"], ["truncate"], ["raise"], ["lie"], ["crash"], ["rot"],
         ["bug"], ["drop", "delay", "corrupt", "truncate", "raise", "lie", "crash", "rot", "bug"]]
    )
]  # fmt: skip


@pytest.mark.parametrize(("seed", "kinds"), SCHEDULES)
def test_whatever_the_store_does_the_text_stays(engine, ask, faults, seed, kinds):
    prompts = [prompt(("fault", seed % 3, n), 120 + 70 * n) for n in range(4)]
    faults.write_text(json.dumps({"seed": seed, "rate": 0.4, "kinds": kinds}))
    try:
        for _ in range(3):
            answers = ask(prompts, tokens=4)
            assert {answer["reason"] for answer in answers} == {"length"}
            engine.forget()
    finally:
        faults.write_text(json.dumps({"seed": seed, "rate": 0.0, "kinds": []}))
    status = faults.with_suffix(".status")
    if kinds != ["lie"]:  # those are told where the scheduler is, which writes no status
        assert sum(json.loads(status.read_text())["injected"].values())
    ask(prompts, tokens=4)

    def nothing_is_held():
        told = json.loads(status.read_text())
        return told["leases"] == 0 and told["writing"] == 0

    wait_for(nothing_is_held)
    engine.forget()
    assert ask(prompts, tokens=4)[3]["cached"] >= 64  # and the store is of use again
