"""The scheduler's half: what is offered, what is ordered, and what is learned from reports."""

import hashlib
import time
from dataclasses import dataclass, field

import pytest

from recollect.vllm.identity import ChunkKeys
from recollect.vllm.messages import Report
from recollect.vllm.planner import HANDOFF, PREFILL_ONLY, Planner, Policy
from recollect.vllm.presence import Presence
from recollect.vllm.worth import Always

BLOCK, CHUNK = 16, 64


@dataclass
class Request:
    """A vLLM request, as far as the planner looks."""

    request_id: str
    length: int
    tokens: str = "same"
    num_computed_tokens: int = 0
    generated: int = 0
    kv_transfer_params: dict | None = None
    blocks: list[int] = field(default_factory=lambda: list(range(100, 200)))

    @property
    def num_prompt_tokens(self):
        return self.length

    @property
    def num_tokens(self):
        return self.length + self.generated

    @property
    def block_hashes(self):
        names = (f"{self.tokens}{n}" for n in range(self.num_tokens // BLOCK))
        return [hashlib.sha256(name.encode()).digest() for name in names]


class Shared:
    """Tiers of other processes: these keys are there, after a while."""

    def __init__(self, keys, delay=0.0):
        self.there, self.delay = set(keys), delay

    def locate(self, keys):
        time.sleep(self.delay)
        found = next((n for n, key in enumerate(keys) if key not in self.there), len(keys))
        return ["disk"] * found


def keys():
    return ChunkKeys("m", namespace="n", salt="", chunk=CHUNK, hashed=BLOCK)


def keys_of(request):
    found: list[bytes] = []
    keys().extend(found, request.block_hashes)
    return found


def policy(**changes):
    """Patient, so that a busy machine changes no answer."""
    return Policy(**{"chunk": CHUNK, "block": BLOCK, "lookup_seconds": 60.0, **changes})


def planner(shared=None, **changes):
    return Planner(policy(**changes), keys(), Presence(shared))


def run(plan, request, scheduled=None, local=0):
    """One request through one step; returns the orders."""
    plan.arrived(request)
    external, later = answer(plan, request, local)
    plan.allocated(request, request.blocks, external)
    request.num_computed_tokens = local + external
    tokens = 0 if later else request.num_tokens - request.num_computed_tokens
    return plan.orders({request.request_id: tokens} if tokens else {}, lambda _: request.blocks)


def answer(plan, request, local=0):
    end = time.monotonic() + 60
    while (found := plan.matched(request, local))[0] is None and time.monotonic() < end:
        time.sleep(0.001)
    return found


def test_a_cold_request_saves_its_full_chunks():
    orders = run(planner(), request := Request("a", 150))
    assert not orders.loads
    assert [part.key for part in orders.saves] == keys_of(request)
    assert [part.blocks for part in orders.saves] == [(100, 101, 102, 103), (104, 105, 106, 107)]


def test_the_next_one_loads_them_and_saves_nothing_again():
    plan = planner()
    run(plan, Request("a", 150))
    orders = run(plan, Request("b", 150))
    (load,) = orders.loads
    assert load.request == "b"
    assert not load.later  # our own worker has it
    assert [part.blocks for part in load.parts] == [(100, 101, 102, 103), (104, 105, 106, 107)]
    assert not orders.saves


@pytest.mark.parametrize(
    ("length", "offered"), [(1, 0), (64, 48), (65, 64), (128, 112), (129, 128), (200, 192)]
)
def test_never_the_last_token_and_only_whole_blocks(length, offered):
    plan = planner()
    run(plan, Request("a", length))
    plan.arrived(again := Request("b", length))
    assert plan.matched(again, 0) == (offered, False)


def test_a_local_hit_inside_a_chunk_is_skipped():
    plan = planner()
    run(plan, Request("a", 200))
    (load,) = run(plan, Request("b", 200), local=96).loads
    assert [(part.skip, part.blocks) for part in load.parts] == [
        (2, (106, 107)), (0, (108, 109, 110, 111)),
    ]  # fmt: skip


def test_asking_again_changes_nothing():
    plan = planner()
    run(plan, Request("a", 150))
    plan.arrived(again := Request("b", 150))
    assert {plan.matched(again, 0) for _ in range(5)} == {(128, False)}
    assert not plan.orders({}, lambda _: None).loads


def test_orders_are_given_once():
    plan = planner()
    run(plan, Request("a", 150))
    assert run(plan, Request("b", 150)).loads
    assert not plan.orders({}, lambda _: None).loads


def test_a_prompt_computed_in_pieces_is_saved_in_pieces():
    plan = planner()
    plan.arrived(request := Request("a", 200))
    saved = []
    for tokens in (50, 50, 50, 50):
        saved.append(len(plan.orders({"a": tokens}, lambda _: request.blocks).saves))
        request.num_computed_tokens += tokens
    assert saved == [0, 1, 1, 1]


def test_generated_tokens_are_saved_unless_told_not_to():
    for wanted in (True, False):
        plan = planner(save_generated=wanted)
        run(plan, request := Request("a", 60))
        request.num_computed_tokens, request.generated = 64, 5
        orders = plan.orders({"a": 1}, lambda _, request=request: request.blocks)
        assert len(orders.saves) == wanted


def test_chunks_that_the_engine_has_and_the_store_lacks_are_saved_too():
    orders = run(planner(), Request("a", 150), local=144)
    assert len(orders.saves) == 2


def test_what_others_stored_is_found_and_loaded_in_the_background():
    request = Request("a", 150)
    plan = planner(Shared(keys_of(request)))
    orders = run(plan, request)
    assert orders.loads[0].later
    assert not orders.saves


def test_a_lookup_that_takes_too_long_is_a_miss():
    request = Request("a", 150)
    plan = planner(Shared(keys_of(request), delay=1.0), lookup_seconds=60.0)
    plan.arrived(request)
    assert plan.matched(request, 0) == (None, False)
    plan._requests["a"].lookup.started -= 61.0
    assert plan.matched(request, 0) == (0, False)


def test_an_unreachable_tier_is_a_miss():
    class Gone:
        def locate(self, keys):
            raise ConnectionError("gone")

    assert not run(planner(Gone()), Request("a", 150)).loads


def test_lost_entries_are_not_offered_again_and_are_saved_again():
    plan = planner()
    run(plan, Request("a", 150))
    orders = run(plan, request := Request("b", 150))
    lost = orders.loads[0].parts[1].key
    plan.reported(Report(lost={lost}, failed={"b"}, taint=1))
    assert plan.matched(request, 0) == (0, False)  # no second try for the same request
    request.num_computed_tokens = 64
    orders = plan.orders({"b": 86}, lambda _: request.blocks)
    assert [part.key for part in orders.saves] == [lost]
    assert orders.taint == 1
    plan.arrived(other := Request("c", 150))
    assert plan.matched(other, 0) == (128, False)


def test_refused_saves_are_offered_again_while_the_request_runs():
    plan = planner()
    orders = run(plan, request := Request("a", 130))
    plan.reported(Report(refused={part.key for part in orders.saves}))
    request.num_computed_tokens = 130
    assert len(plan.orders({"a": 1}, lambda _: request.blocks).saves) == 2
    assert not plan.orders({"a": 1}, lambda _: request.blocks).saves


def test_an_entry_counts_as_committed_when_every_worker_has_it():
    plan = Planner(Policy(chunk=CHUNK, block=BLOCK), keys(), Presence(None), workers=2)
    assert plan.reported(Report(committed=[b"k"])) == []
    assert plan.reported(Report(committed=[b"k"])) == [b"k"]
    assert plan.reported(Report(committed=[b"l", b"l"])) == [b"l"]


def test_roles():
    consumer = planner(saves=False)
    assert not run(consumer, Request("a", 150)).saves
    producer = planner(loads=False, hands_off=True)
    run(producer, Request("a", 150))
    assert not run(producer, request := Request("b", 150)).loads
    assert producer.finished(request) == {HANDOFF: 2}


def test_a_prefill_request_ends_with_what_to_expect():
    plan = planner()
    run(plan, request := Request("a", 150, kv_transfer_params={PREFILL_ONLY: True}))
    assert plan.finished(request) == {HANDOFF: 2}
    run(plan, request := Request("b", 150))
    assert plan.finished(request) is None


def test_a_consumer_waits_for_what_was_announced():
    request = Request("a", 150, kv_transfer_params={HANDOFF: 2})
    shared = Shared(keys_of(request)[:1])
    plan = planner(shared, handoff_seconds=60.0, lookup_seconds=0.0)
    plan.arrived(request)
    time.sleep(0.03)
    assert plan.matched(request, 0) == (None, False)
    shared.there = set(keys_of(request))
    assert answer(plan, request) == (128, True)


def test_an_aborted_request_leaves_nothing_behind():
    plan = planner()
    plan.arrived(request := Request("a", 150))
    plan.finished(request)
    assert plan.matched(request, 0) == (0, False)
    assert not plan.orders({"a": 150}, lambda _: request.blocks).saves


def test_a_block_table_that_cannot_be_had_loses_the_save_not_the_loads():
    plan = planner()
    run(plan, Request("a", 150))
    plan.arrived(request := Request("b", 250))
    external, _ = plan.matched(request, 0)
    plan.allocated(request, request.blocks, external)
    request.num_computed_tokens = external

    def broken(_):
        raise KeyError("no table")

    orders = plan.orders({"b": 122}, broken)
    assert len(orders.loads) == 1
    assert not orders.saves


class Choosy(Always):
    """Loads and saves so many chunks."""

    def __init__(self, load=0, save=0, probe=False):
        super().__init__()
        self.load, self.save, self.probe = load, save, probe

    def loads(self, tiers, tokens, total, ready):
        self.asked = (list(tiers), list(tokens), total, ready)
        return self.load, self.probe

    def saves(self, keys, start):
        return min(self.save, len(keys))


def choosy(shared=None, **wants):
    return Planner(policy(), keys(), Presence(shared), worth=Choosy(**wants))


def test_only_what_is_worth_loading_is_loaded():
    request = Request("a", 250)
    plan = choosy(Shared(keys_of(request)), load=2)
    plan.arrived(request)
    assert answer(plan, request, local=32) == (96, True)
    assert plan.worth.asked == (["disk"] * 3, [32, 64, 64], 250, 32)
    plan.allocated(request, request.blocks, 96)
    (load,) = plan.orders({}, lambda _: None).loads
    assert [part.blocks for part in load.parts] == [(102, 103), (104, 105, 106, 107)]


def test_an_entry_that_is_not_loaded_may_be_probed_once():
    request = Request("a", 250)
    plan = choosy(Shared(keys_of(request)), load=1, probe=True)
    plan.arrived(request)
    answer(plan, request)
    answer(plan, request)
    assert plan.orders({}, lambda _: None).probes == [keys_of(request)[1]]
    assert plan.orders({}, lambda _: None).probes == []


def test_how_it_is_loaded_follows_from_where_it_is_when_blocks_are_given():
    """A request may wait long for its blocks, and another one may save its prefix meanwhile."""
    request = Request("a", 150)
    plan = planner(Shared(keys_of(request)))
    plan.arrived(request)
    assert answer(plan, request) == (128, True)
    for key in keys_of(request):
        plan.presence.add(key)
    assert plan.matched(request, 0) == (128, False)
    plan.allocated(request, request.blocks, 128)
    assert not plan.orders({}, lambda _: None).loads[0].later


def test_behind_a_chunk_that_is_not_worth_saving_none_is_saved():
    plan = choosy(save=1)
    plan.arrived(request := Request("a", 250))
    saved = []
    for _ in range(4):
        saved += plan.orders({"a": 64}, lambda _: request.blocks).saves
        request.num_computed_tokens += 64
    assert [part.key for part in saved] == keys_of(request)  # one at a time, each was worth it
    plan = choosy(save=1)
    request = Request("b", 150)
    assert len(run(plan, request).saves) == 1
    request.num_computed_tokens, request.length = 150, 250
    assert not plan.orders({"b": 100}, lambda _: request.blocks).saves


def test_what_is_handed_off_is_saved_whatever_it_is_worth():
    plan = choosy()
    asked = Request("a", 150, kv_transfer_params={PREFILL_ONLY: True})
    assert len(run(plan, asked).saves) == 2
    assert not run(plan, Request("b", 200, tokens="other")).saves


def test_steps_with_a_prefill_say_what_they_compute_and_decoding_does_not():
    plan = planner()
    orders = run(plan, request := Request("a", 150))
    assert (orders.tokens, orders.pairs) == (150, 150 * 151 / 2)
    request.num_computed_tokens = 150
    assert plan.orders({"a": 1}, lambda _: request.blocks).tokens == 0
    assert plan.orders({"a": 100, "unknown": 100}, lambda _: request.blocks).tokens == 0


def test_memory_of_keys_is_bounded():
    presence = Presence(None, most=10)
    for n in range(25):
        presence.add(bytes([n]))
    assert len(presence) == 10
    assert bytes([24]) in presence
