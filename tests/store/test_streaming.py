"""The controller, against brute force and the released policy; the loader and delivery."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.errors import StoreError
from recollect.store.frames import FrameHeader, encode_layers
from recollect.store.streaming import (
    TEXT,
    AdaptivePolicy,
    Chunk,
    LayerStream,
    Progress,
    ReleasedPolicy,
    Throughput,
    deliver,
    level_key,
)
from recollect.store.streaming.simulation import Trace, brute_force, outcome, run, value

LEVELS = 3


def request(seed, count=6):
    draw = np.random.default_rng(seed)
    full = draw.uniform(0.5e6, 1.5e6, count)
    text = draw.uniform(0.05, 0.3, count)
    chunks = [
        Chunk(tuple(int(size * share) for share in (1, 0.7, 0.5)), float(seconds), 0.005)
        for size, seconds in zip(full, text, strict=True)
    ]
    return chunks, draw.uniform(0.2, 2.0), 10 ** draw.uniform(5.5, 8)


# -- the controller ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [AdaptivePolicy(), ReleasedPolicy(6)])
def test_infinite_bandwidth_takes_the_best_level_everywhere(policy):
    chunks, deadline, _ = request(0)
    found = run(policy, chunks, deadline, Trace((math.inf,)), known=math.inf)
    assert found.choices == (0,) * 6


@pytest.mark.parametrize("policy", [AdaptivePolicy(), ReleasedPolicy(6)])
def test_no_bandwidth_computes_everything_again(policy):
    chunks, deadline, _ = request(0)
    for late in (deadline, 0.01):
        found = run(policy, chunks, late, Trace((0.0,)), known=0.0)
        assert found.choices == (TEXT,) * 6
        assert found.finish == pytest.approx(sum(chunk.text_seconds for chunk in chunks))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_deadline_is_met_whenever_any_assignment_meets_it(seed):
    chunks, deadline, bandwidth = request(seed)
    trace = Trace((bandwidth,))
    best = brute_force(chunks, deadline, trace)
    found = run(AdaptivePolicy(), chunks, deadline, trace, known=bandwidth)
    assert found.finish <= max(deadline, best.finish) + 1e-9


def test_within_five_percent_of_brute_force_on_six_chunks():
    shares = {0.0: [], AdaptivePolicy().caution: []}
    for seed in range(40):
        chunks, deadline, bandwidth = request(seed)
        trace = Trace((bandwidth,))
        best = brute_force(chunks, deadline, trace)
        if best.finish > deadline:
            continue
        for caution, found in shares.items():
            mine = run(AdaptivePolicy(caution=caution), chunks, deadline, trace, known=bandwidth)
            found.append(value(mine.choices, LEVELS) / value(best.choices, LEVELS))
    assert min(shares[0.0]) > 0.999  # caution is all that is given away on a steady link
    assert np.mean(shares[AdaptivePolicy().caution]) >= 0.95


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_more_bandwidth_is_never_worth_less(seed):
    chunks, deadline, _ = request(seed)
    worth = []
    for bandwidth in np.logspace(5.5, 8, 8):
        found = run(AdaptivePolicy(), chunks, deadline, Trace((bandwidth,)), known=bandwidth)
        worth.append((found.finish <= deadline, value(found.choices, LEVELS)))
    met = [w for w in worth if w[0]]
    assert met == sorted(met)
    assert [w[0] for w in worth] == sorted(w[0] for w in worth)


def test_slack_is_carried_over_where_the_released_policy_loses_it():
    """Two thirds of the chunks are small: what they leave pays for the large one."""
    small, large = Chunk((100,), 9.0), Chunk((700,), 9.0)
    chunks, trace = [small, small, large], Trace((1000.0,))
    assert run(AdaptivePolicy(), chunks, 1.2, trace, known=1000.0).finish <= 1.2
    assert run(ReleasedPolicy(3), chunks, 1.2, trace, oracle=True).finish > 1.2


def test_carrying_slack_dominates_equal_shares_on_every_constant_trace():
    for seed in range(30):
        chunks, deadline, bandwidth = request(seed)
        trace = Trace((bandwidth,))
        ours = run(AdaptivePolicy(caution=0), chunks, deadline, trace, known=bandwidth)
        theirs = run(ReleasedPolicy(6), chunks, deadline, trace, oracle=True)
        if theirs.finish <= deadline:
            assert ours.finish <= deadline
            assert value(ours.choices, LEVELS) >= value(theirs.choices, LEVELS) - 1e-9


def test_violations_are_at_most_half_of_the_released_policys():
    late = {"ours": 0, "released": 0}
    for seed in range(40):
        draw = np.random.default_rng(seed)
        trace = Trace(tuple(10 ** draw.uniform(6, 8.3, 100)), step=0.05)
        chunks = [Chunk((5_000_000, 3_600_000, 2_900_000, 2_400_000), 0.2, 0.005)] * 6
        ours = run(AdaptivePolicy(), chunks, 1.0, trace, known=trace.at(0))
        late["ours"] += ours.finish > 1.0
        late["released"] += run(ReleasedPolicy(6), chunks, 1.0, trace, oracle=True).finish > 1.0
    assert late["released"] > 10
    assert late["ours"] <= late["released"] / 2


def test_text_waits_for_all_chunks_before_it_and_leaves_the_link_free():
    chunk = Chunk((1000,), 0.5, 0.1)
    one = Progress().after(chunk, 0, 1.0)
    assert one == Progress(link=1.0, ready=1.1)
    assert one.after(chunk, TEXT, 0.0) == Progress(link=1.0, ready=1.6)
    found = outcome((0, TEXT, 0), [chunk] * 3, Trace((1000.0,)))
    assert found.finish == pytest.approx(2.1)


def test_without_a_measurement_a_middle_level_is_taken():
    assert AdaptivePolicy().choose([Chunk((4, 3, 2, 1), 1.0)], Progress(), 1.0, None) == 2


def test_small_transfers_say_nothing_about_bandwidth():
    throughput = Throughput(smallest=1000)
    throughput.observe(999, 1.0)
    assert throughput.bandwidth is None
    throughput.observe(5000, 0.5)
    throughput.observe(10, 1.0)
    assert throughput.bandwidth.last == 10_000


def test_a_steady_link_is_trusted_and_an_unsteady_one_is_not():
    steady, unsteady = Throughput(0), Throughput(0)
    for i in range(8):
        steady.observe(1000, 1.0)
        unsteady.observe(1000, 1.0 + 9 * (i % 2))
    assert steady.bandwidth.change < 0.01
    assert unsteady.bandwidth.change > 0.8


def test_transfers_follow_the_trace():
    trace = Trace((100.0, 0.0, 50.0), step=1.0)
    assert trace.transfer(0.0, 50) == pytest.approx(0.5)
    assert trace.transfer(0.5, 100) == pytest.approx(2.5)
    assert trace.transfer(9.0, 100) == pytest.approx(2.0)
    assert Trace((100.0, 0.0), step=1.0).transfer(0.0, 101) == math.inf


# -- the loader -------------------------------------------------------------------------------


class Held:
    """A lease that counts."""

    def __init__(self, data):
        self.data, self.released = memoryview(data), 0

    def release(self):
        self.released += 1


def chunk_layers(seed, layers=3, tokens=20):
    draw = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(2, tokens, 8, generator=draw) for _ in range(2)) for _ in range(layers)
    ]


def frame(seed, codec="dense", **changes):
    header = replace(FrameHeader("m", 20, first_position=20 * seed), **changes)
    return b"".join(encode_layers(chunk_layers(seed), header, codec))


@pytest.mark.parametrize("ahead", [1, 2, 9])
def test_layers_of_all_chunks_come_in_order_and_belong_to_the_caller(ahead):
    leases = [Held(frame(seed)) for seed in (0, 1)]
    with LayerStream(leases, model="m", ahead=ahead, threads=2) as stream:
        assert (stream.layers, stream.tokens) == (3, 40)
        found = list(stream)
    assert [lease.released for lease in leases] == [1, 1]
    assert [layer.number for layer in found] == [0, 1, 2]
    for layer in found:
        for part, x in enumerate((layer.k, layer.v)):
            whole = [chunk_layers(seed)[layer.number][part] for seed in (0, 1)]
            assert torch.equal(x, torch.cat(whole, dim=1))
            x.zero_()  # not a view of the lease


def test_the_next_layer_is_decoded_while_this_one_is_used(monkeypatch):
    from recollect.store.streaming import loader

    reached = [threading.Event() for _ in range(3)]
    original = loader.decode_layer

    def noted(frame, index):
        reached[index].set()
        return original(frame, index)

    monkeypatch.setattr(loader, "decode_layer", noted)
    with LayerStream([Held(frame(0))], ahead=1) as stream:
        layers = iter(stream)
        next(layers)
        assert reached[1].wait(10)  # nobody asked for it yet
        assert not reached[2].is_set()  # and no more than that


def test_a_corrupt_layer_is_reported_when_it_is_reached():
    data = bytearray(frame(0))
    data[-1] ^= 1
    with LayerStream([Held(data)]) as stream:
        layers = iter(stream)
        assert next(layers).number == 0
        assert next(layers).number == 1
        with pytest.raises(StoreError, match="corrupt"):
            next(layers)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([], "no frames"),
        ([frame(0), frame(2)], "begins at position 40, not 20"),
        ([frame(0), frame(1, form="pre-rope")], "do not fit together"),
        ([frame(0, model="x")], "belongs to model x"),
        ([b"junk"], "truncated"),
    ],
)
def test_chunks_that_are_no_run_of_tokens_are_refused_and_given_back(frames, match):
    leases = [Held(data) for data in frames]
    with pytest.raises(StoreError, match=match):
        LayerStream(leases, model="m")
    assert all(lease.released == 1 for lease in leases)


# -- delivery ---------------------------------------------------------------------------------


class Always:
    """A policy with its mind made up."""

    def __init__(self, *choices):
        self.choices = list(choices)

    def choose(self, remaining, progress, deadline, bandwidth):
        return self.choices[-len(remaining)]


class Shelf(dict):
    """The smallest store: leases by key, and which of them were given out."""

    def __init__(self, entries):
        super().__init__(entries)
        self.given = []

    def get(self, key):
        if key not in self:
            return None
        self.given.append(Held(self[key]))
        return self.given[-1]


CODECS = ("dense", "int8")
KEYS = [bytes([seed]) * 32 for seed in range(4)]


def shelf():
    return Shelf(
        {level_key(KEYS[seed], codec): frame(seed, codec) for seed in range(4) for codec in CODECS}
    )


def computed(number, before):
    assert len(before) == number
    assert all(chunk.layers for chunk in before)
    return chunk_layers(number)


def test_every_chunk_arrives_at_its_chosen_level():
    store = shelf()
    chunks = [Chunk((2, 1), 1.0)] * 4
    found = deliver(
        store, KEYS, chunks, computed, Always(0, TEXT, 1, TEXT), 1.0, codecs=CODECS, model="m"
    )
    assert [chunk.choice for chunk in found] == [0, TEXT, 1, TEXT]
    for seed, chunk in enumerate(found):
        for (k, v), (k_true, v_true) in zip(chunk.layers, chunk_layers(seed), strict=True):
            for x, true in ((k, k_true), (v, v_true)):
                assert float((x - true).abs().max()) < (0.05 if chunk.choice == 1 else 1e-9)
    assert all(lease.released == 1 for lease in store.given)


@pytest.mark.parametrize("damage", ["missing", "corrupt", "foreign"])
def test_what_is_missing_corrupt_or_foreign_is_computed_again(damage):
    store = shelf()
    for seed in (1, 2):
        key = level_key(KEYS[seed], "int8")
        if damage == "missing":
            del store[key]
        elif damage == "corrupt":
            store[key] = store[key][:-1] + b"?"
        else:
            store[key] = frame(seed, "int8", model="other")
    chunks = [Chunk((2, 1), 1.0)] * 4
    policy = Always(1, 1, 1, TEXT)
    found = deliver(store, KEYS, chunks, computed, policy, 1.0, codecs=CODECS, model="m")
    assert [chunk.choice for chunk in found] == [1, TEXT, TEXT, TEXT]
    assert torch.equal(found[2].layers[1][0], chunk_layers(2)[1][0])
    assert all(lease.released == 1 for lease in store.given)


def test_levels_of_a_chunk_lie_under_keys_of_their_own():
    keys = {level_key(KEYS[0], codec) for codec in ("dense", "int8", "cachegen-0", "cachegen-1")}
    assert len(keys) == 4
    assert level_key(KEYS[0], "dense") == KEYS[0]
    assert all(len(key) == 32 for key in keys)
