"""What is loaded and saved follows from what was measured."""

import time

import pytest
import torch

from recollect.vllm.messages import Forward, Measured, Orders, Report
from recollect.vllm.timing import ForwardTimer
from recollect.vllm.worth import Always
from recollect.vllm.worth import Measured as ByMeasure

CHUNK, NBYTES = 256, 4 << 20


def keys(count, prompt=0):
    return [bytes([prompt, n]) for n in range(count)]


def judge(*, per_token=1e-3, read=1e-3, write=1e-3, now=lambda: 0.0, **settings):
    """One that has heard what a token costs to compute, and an entry to read and to write."""
    worth = ByMeasure(nbytes=NBYTES, chunk=CHUNK, clock=now, **settings)
    sizes = (64, 512, 2048)
    worth.heard(
        Report(
            reads=[Measured("host", NBYTES, read)] * 4 + [Measured("disk", NBYTES, 50 * read)] * 4,
            writes=[Measured("", NBYTES, write)] * 4,
            forwards=[Forward(n, n * n / 2, per_token * n) for n in sizes] * 2,
        )
    )
    return worth


def test_before_anything_was_measured_all_is_moved():
    worth = ByMeasure(nbytes=NBYTES, chunk=CHUNK)
    assert worth.loads(["disk"] * 3, [CHUNK] * 3, 1000, 0)[0] == 3
    assert worth.saves(keys(3), 0) == 3


def test_what_is_quicker_to_compute_is_not_loaded():
    assert judge(read=1e-3).loads(["host"] * 3, [CHUNK] * 3, 1000, 0)[0] == 3
    assert judge(read=1.0).loads(["host"] * 3, [CHUNK] * 3, 1000, 0)[0] == 0


def test_loading_stops_where_a_slow_tier_begins():
    worth = judge(read=0.1)  # an entry: 0.26 s to compute, 0.1 s from host, 5 s from disk
    assert worth.loads(["host", "host", "disk"], [CHUNK] * 3, 1000, 0)[0] == 2


def test_a_few_missing_tokens_of_an_entry_are_computed():
    worth = judge(read=0.1)
    assert worth.loads(["host"], [32], 1000, 224)[0] == 0
    assert worth.loads(["host"], [192], 1000, 64)[0] == 1


def test_a_tier_that_is_passed_over_is_probed_now_and_then():
    now = [0.0]
    worth = judge(read=10.0, now=lambda: now[0])
    assert worth.loads(["host"], [CHUNK], 1000, 0) == (0, False)
    now[0] = 100.0
    assert worth.loads(["host"], [CHUNK], 1000, 0) == (0, True)
    assert worth.loads(["host"], [CHUNK], 1000, 0) == (0, False)


def test_an_explicit_length_overrides_what_was_measured():
    worth = judge(read=10.0, min_load_tokens=300)
    assert worth.loads(["host"] * 2, [CHUNK] * 2, 1000, 0)[0] == 2
    assert worth.loads(["host"], [CHUNK], 1000, 0)[0] == 0
    assert Always(300).loads(["host"], [CHUNK], 1000, 0)[0] == 0


def test_prompts_that_never_return_are_no_longer_saved_and_those_that_do_are():
    worth = judge(write=0.02)  # a twelfth of computing it
    for prompt in range(200):
        worth.seen(keys(4, prompt))
    assert worth.saves(keys(4, 199), 0) == 0
    worth.seen(keys(4, 199))
    assert worth.saves(keys(4, 199), 0) == 4


def test_where_prompts_return_the_first_sight_is_enough():
    worth = judge(write=0.02)
    for prompt in range(100):
        worth.seen(keys(4, prompt))
        worth.seen(keys(4, prompt))
    worth.seen(keys(4, 200))
    assert worth.saves(keys(4, 200), 0) == 4


def test_a_shared_head_is_saved_without_its_tails():
    worth = judge(write=0.02)
    head = keys(2, 255)
    for prompt in range(200):
        worth.seen(head + keys(3, prompt))
    assert worth.saves(head + keys(3, 199), 0) == 2


def test_a_forward_is_timed_without_what_was_done_beside_it():
    timer = ForwardTimer(torch.device("cpu"))
    timer.begin()
    time.sleep(0.02)
    timer.leave_out(0.01)
    timer.end(Orders(tokens=7, pairs=28.0))
    ((tokens, pairs, seconds),) = timer.take()
    assert (tokens, pairs) == (7, 28.0)
    assert 0.01 <= seconds < 10
    assert timer.take() == []


def test_decoding_steps_are_not_timed():
    timer = ForwardTimer(torch.device("cpu"))
    timer.begin()
    timer.end(Orders())
    assert timer.take() == []


@pytest.mark.parametrize("other", [1, 2])
def test_reports_of_several_workers_add_up(other):
    report = Report(reads=[Measured("host", 1, 0.1)])
    for _ in range(other):
        report.merge(Report(forwards=[Forward(1, 1.0, 0.1)], writes=[Measured("", 1, 0.1)]))
    assert len(report.forwards) == len(report.writes) == other
    assert report.is_news()
    assert not Report(taint=3).is_news()
