"""Background work: bounded, never in the way, and gone without a trace when it is over."""

import gc
import threading
import weakref

import pytest

from recollect.store.background import BackgroundThreads


@pytest.fixture
def background():
    background = BackgroundThreads(threads=2, nbytes=100, works=5)
    yield background
    background.close()


@pytest.fixture
def gate():
    """Works that wait for it hold up the queue; opened at the end whatever happens."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_everything_accepted_is_done(background):
    done = []
    accepted = [background.submit(lambda i=i: done.append(i), 10) for i in range(5)]
    assert background.flush(10)
    assert sorted(done) == [i for i, yes in enumerate(accepted) if yes]
    assert (background.waiting, background.nbytes, background.failed) == (0, 0, 0)


def test_one_thread_keeps_the_order(gate):
    background, done = BackgroundThreads(threads=1), []
    background.submit(gate.wait)
    for i in range(50):
        background.submit(lambda i=i: done.append(i))
    gate.set()
    background.close()
    assert done == list(range(50))


def test_too_many_bytes_are_dropped_not_waited_for(background, gate):
    assert background.submit(gate.wait, 60)
    assert background.submit(gate.wait, 40)
    assert not background.submit(gate.wait, 1)
    assert background.submit(gate.wait, 0)
    assert background.dropped == 1


def test_one_work_larger_than_the_limit_is_taken_alone(background, gate):
    assert background.submit(gate.wait, 1000)
    assert not background.submit(gate.wait, 1)
    gate.set()
    assert background.flush(10)
    assert background.submit(gate.wait, 1)


def test_too_many_works_are_dropped(background, gate):
    started = threading.Barrier(3)

    def busy():
        started.wait(10)
        gate.wait()

    assert background.submit(busy)
    assert background.submit(busy)
    started.wait(10)
    assert [background.submit(gate.wait) for _ in range(7)] == [True] * 5 + [False] * 2


def test_no_more_threads_than_asked_for(background, gate):
    before = threading.active_count()
    for _ in range(4):
        background.submit(gate.wait)
    assert threading.active_count() == before + 2


def test_a_failing_work_stops_nobody(background):
    done = []
    background.submit(lambda: 1 / 0)
    background.submit(lambda: done.append(1))
    assert background.flush(10)
    assert (done, background.failed, background.done) == ([1], 1, 1)


def test_flush_gives_up_when_told_to(background, gate):
    background.submit(gate.wait)
    assert not background.flush(0.01)


def test_flush_from_within_a_work_does_not_wait_for_itself(background):
    answers = []
    background.submit(lambda: answers.append(background.flush()))
    assert background.flush(10)
    assert answers == [False]


def test_close_finishes_what_was_accepted_and_takes_nothing_more(background, gate):
    done = []
    background.submit(lambda: (gate.wait(), done.append(1)))
    threading.Timer(0.01, gate.set).start()
    background.close()
    assert done == [1]
    assert not background.submit(lambda: done.append(2))
    background.close()
    for thread in background._threads:
        thread.join(10)
        assert not thread.is_alive()


def test_close_drops_what_takes_too_long(gate):
    background, done = BackgroundThreads(threads=1), []
    background.submit(gate.wait, 1)
    background.submit(lambda: done.append(1), 10)
    background.close(timeout=0.01)
    gate.set()
    assert background.flush(10)
    assert (done, background.dropped, background.nbytes) == ([], 1, 0)


class Held:
    """Stands for a lease that a work holds."""


@pytest.mark.parametrize("fate", ["done", "failed", "dropped"])
def test_nothing_that_a_work_held_stays_behind(background, gate, fate):
    if fate == "dropped":
        background.submit(gate.wait, 100)
    held = Held()
    gone = weakref.ref(held)

    def work(held=held):
        if fate == "failed":
            raise RuntimeError(held)

    assert background.submit(work, 1) == (fate != "dropped")
    del held, work
    gate.set()
    assert background.flush(10)
    gc.collect()
    assert gone() is None
