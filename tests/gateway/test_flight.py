"""Flights, floors and load by themselves: no sockets, no clocks."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.gateway.documents import elements, load_object, members, pieces
from recollect.gateway.flight import Flights
from recollect.gateway.floor import Floor, Times
from recollect.gateway.load import Load
from recollect.gateway.refusals import Refusal
from recollect.gateway.upstream import Head

HEAD = Head(200, [])


def test_late_travellers_read_from_the_start_and_after_the_landing():
    async def story():
        flights, go, stored = Flights(), asyncio.Event(), asyncio.Event()

        async def fly(flight):
            flight.begin(HEAD)
            flight.add(b"one ")
            await go.wait()
            flight.add(b"two")
            flight.land()
            await stored.wait()

        first, joined = flights.join("key", fly)
        assert not joined
        await first.headed()
        second, joined = flights.join("key", fly)
        assert joined
        assert second is first
        assert flights.join("other", fly)[0] is not first
        assert flights.join(None, fly)[0] is not flights.join(None, fly)[0]
        go.set()
        assert await first.read() == b"one two"
        third, joined = flights.join("key", fly)
        assert joined, "what is being stored is still shared"
        assert [chunk async for chunk in third.chunks()] == [b"one ", b"two"]
        for flight in (first, second, third):
            flight.leave()
        assert flights.settling == 1
        stored.set()
        await flights.settled(5)
        assert not flights.join("key", fly)[1]

    asyncio.run(story())


def test_the_last_to_leave_cancels_and_those_who_come_then_start_anew():
    async def story():
        flights, cancelled = Flights(), []

        async def fly(flight):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(flight)
                raise

        flight, _ = flights.join("key", fly)
        flights.join("key", fly)
        await asyncio.sleep(0)
        flight.leave()
        await asyncio.sleep(0)
        assert cancelled == []
        flight.leave()
        await asyncio.wait([flight.task])
        assert cancelled == [flight]
        assert len(flights) == 0
        with pytest.raises(Refusal, match="given up"):
            await flight.read()

    asyncio.run(story())


@pytest.mark.parametrize("error", [Refusal(502, "gone", "gone"), ValueError("a defect of ours")])
def test_a_failure_is_told_to_all(error):
    async def story():
        flights = Flights()

        async def fly(flight):
            flight.begin(HEAD)
            flight.add(b"half")
            raise error

        flight, _ = flights.join("key", fly)
        flights.join("key", fly)
        for _ in range(2):
            with pytest.raises(Refusal) as told:
                await flight.read()
            assert told.value.status in (500, 502)
            with pytest.raises(Refusal):
                assert [chunk async for chunk in flight.chunks()] == []
        assert len(flights) == 0

    asyncio.run(story())


def separation(first, second):
    """Chance to tell two samples apart by a threshold."""
    below = sum((a < b) + 0.5 * (a == b) for a in first for b in second)
    share = below / (len(first) * len(second))
    return max(share, 1 - share)


def test_times_of_hits_are_drawn_from_those_of_misses():
    rng = random.Random(0)
    floor = Floor(kept=256, rng=rng)
    assert floor.draw("chat") is None
    for _ in range(256):
        seconds = rng.lognormvariate(0, 1)
        floor.learn("chat", Times(seconds, 2 * seconds))
    assert floor.draw("other kind") is None
    hits = [floor.draw("chat").first for _ in range(400)]
    misses = [rng.lognormvariate(0, 1) for _ in range(400)]
    assert separation(hits, misses) < 0.6
    assert separation([0.0] * 400, misses) == 1.0


def test_waits_last_as_long_as_asked_on_average_though_each_ends_late():
    clock = [0.0]

    async def sleep(seconds):
        clock[0] += seconds + 0.004

    floor = Floor(ticks=lambda: clock[0], sleep=sleep)
    for _ in range(100):
        asyncio.run(floor.wait(0.02))
    begun = clock[0]
    for _ in range(100):
        asyncio.run(floor.wait(0.02))
    assert (clock[0] - begun) / 100 == pytest.approx(0.02, abs=1e-4)
    asyncio.run(floor.wait(-1.0))


def test_a_floor_forgets_kinds_rather_than_grow_without_end():
    floor = Floor()
    for kind in range(2000):
        floor.learn(kind, Times(1.0, 1.0))
    assert floor.draw(0) is None
    assert floor.draw(1999) == Times(1.0, 1.0)


def test_load_is_the_larger_share_and_history_is_no_load():
    load = Load(seconds=2.0, requests=10)
    assert load.now() == 0.0
    load.in_flight = 3
    assert load.now() == 0.3
    load.learn(1.0)
    assert load.now() == 0.5
    for _ in range(100):
        load.learn(10.0)
    assert load.now() == 1.0
    load.in_flight = 0
    assert load.now() == 0.0
    assert Load().now() == 0.0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4), st.sampled_from([None, 1]))
def test_members_and_elements_are_cut_where_json_cuts_them(value, indent):
    import json

    text = json.dumps(value, indent=indent)
    assert {name: json.loads(part) for name, part in members(text).items()} == value
    listed = list(value.values())
    assert [json.loads(part) for part in elements(json.dumps(listed, indent=indent))] == listed
    assert load_object(text) == value


@given(st.text(max_size=40), st.integers(1, 7))
def test_pieces_join_to_the_text(text, size):
    found = pieces(text, size)
    assert "".join(found) == text
    assert found
    assert all(len(piece) <= size for piece in found)
