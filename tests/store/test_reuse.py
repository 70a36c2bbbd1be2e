"""Sightings: the future of a key is predicted from what became of keys seen as often."""

import random

import pytest

from recollect.store.reuse import LEVELS, Sightings


def key(n):
    return n.to_bytes(8, "big")


def test_before_anything_was_seen_keys_are_taken_to_come_back():
    assert Sightings().odds(1) == 1


def test_keys_that_never_return_are_not_expected_again():
    sightings = Sightings()
    sightings.add(key(n) for n in range(5000))
    assert sightings.odds(1) < 0.02


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_the_odds_of_a_return_are_the_real_ones(share):
    """Each sighting is followed by another with the same chance."""
    draw, sightings, waiting = random.Random(0), Sightings(memory=1e9), []
    for n in range(int(20_000 * (1 - share))):
        waiting.append(key(n))
        while waiting:
            one = waiting.pop()
            sightings.add([one])
            if draw.random() < share:
                waiting.append(one)
    for times in range(1, LEVELS + 1):
        rare = share ** (times - 1) < 0.1  # hardly any key was seen that often
        assert rare or sightings.odds(times) == pytest.approx(share / (1 - share), rel=0.15)


def test_a_head_that_all_share_is_told_from_tails_that_nobody_does():
    sightings = Sightings()
    for n in range(1000):
        sightings.add([b"head", key(n)])
    assert sightings.times(b"head") == LEVELS
    assert sightings.odds(LEVELS) > 10
    assert sightings.odds(1) < 0.1


def test_times_that_change_are_noticed():
    sightings = Sightings(memory=500)
    sightings.add(key(n) for n in range(3000))
    before = sightings.odds(1)
    for n in range(3000, 6000):
        sightings.add([key(n), key(n)])
    assert before < 0.05
    assert sightings.odds(1) > 1


def test_memory_is_bounded_and_the_oldest_go_first():
    sightings = Sightings(most=10)
    sightings.add(key(n) for n in range(25))
    sightings.add([key(15)])
    sightings.add(key(n) for n in range(100, 109))
    assert len(sightings) == 10
    assert sightings.times(key(15)) == 2
    assert sightings.times(key(16)) == 0
