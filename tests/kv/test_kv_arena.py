"""The arena as storage: the host's numbers, growth in place, memory that follows tokens."""

import gc
import mmap

import pytest
import torch
from transformers import DynamicCache, StaticCache

import recollect
from recollect.errors import HostError, RecipeError
from recollect.kv.arena import KVArena, VirtualSlots

PAGE = mmap.PAGESIZE


@pytest.fixture
def arena_cache(model):
    """Make caches in an arena, closed after the test."""
    caches = []

    def make(**arguments):
        arguments = {"kernel": "host", **arguments}
        caches.append(recollect.kv_cache(model, "vattention", **arguments))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def generate(model, cache, ids, **options):
    options = {"max_new_tokens": 40, "do_sample": False, **options}
    return model.generate(ids, past_key_values=cache, **options)


def logits(model, cache, ids, steps=8):
    """Logits of a prefill and of forced steps, (steps + 1, B, V)."""
    with torch.no_grad():
        out = [model(input_ids=ids, past_key_values=cache).logits[:, -1]]
        for t in range(steps):
            out.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits[:, -1])
    return torch.stack(out)


def live_bytes(cache):
    """Bytes of the tokens held, by layer and tensor alike."""
    layer = cache.governed[0]
    return layer.slab.batch * layer.slab.heads * layer.seen * 16 * 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_the_host_s_growing_cache_bit_for_bit(attention, model, ids, arena_cache):
    model.set_attn_implementation(attention)
    try:
        expected = logits(model, DynamicCache(config=model.config), ids)
        assert torch.equal(logits(model, arena_cache(), ids), expected)
    finally:
        model.set_attn_implementation("sdpa")


def test_generate_equals_a_dense_and_a_static_cache(model, ids, arena_cache):
    expected = generate(model, DynamicCache(config=model.config), ids)
    static = StaticCache(config=model.config, max_cache_len=200)
    assert torch.equal(generate(model, static, ids), expected)
    assert torch.equal(generate(model, arena_cache(), ids), expected)
    assert torch.equal(generate(model, arena_cache(kernel="ours"), ids), expected)


def test_padded_batches_and_beams_equal_the_host(model, ids, arena_cache):
    mask = torch.ones_like(ids)
    mask[1, :50] = 0
    for options in ({"attention_mask": mask}, {"num_beams": 3}):
        expected = generate(model, DynamicCache(config=model.config), ids, **options)
        assert torch.equal(generate(model, arena_cache(), ids, **options), expected)


@torch.no_grad()
def test_growth_across_pages_moves_nothing(model, ids, arena_cache):
    cache = arena_cache()
    model(input_ids=ids, past_key_values=cache)
    slab = cache.governed[0].slab
    addresses = {x.data_ptr() for x in slab.dense()}
    pages = set()
    for t in range(100):  # a page holds 32 tokens
        model(input_ids=ids[:, t : t + 1], past_key_values=cache)
        pages.add(slab.nbytes)
        assert {x.data_ptr() for x in slab.dense()} == addresses
    assert len(pages) >= 4
    assert slab is cache.governed[0].slab


@torch.no_grad()
def test_memory_is_what_live_tokens_take_and_two_pages_per_tensor(model, ids, arena_cache):
    cache = arena_cache()
    for t in range(0, 120, 7):
        model(input_ids=ids[:, t : t + 7], past_key_values=cache)
        tensors = 2 * len(cache.governed)
        resident = cache.arena.resident
        assert live_bytes(cache) * tensors <= resident
        assert resident <= (live_bytes(cache) + 2 * PAGE) * tensors
        assert cache.arena.nbytes == resident
        books = sum(x.nbytes for la in cache.governed for x in (la.slab.starts, la.slab.lengths))
        assert cache.nbytes == resident + books
    assert cache.report().nbytes == cache.nbytes


def test_a_freed_slot_keeps_its_memory_and_shows_none_of_it(model, ids, arena_cache):
    expected = logits(model, DynamicCache(config=model.config), ids)
    cache = arena_cache()
    logits(model, cache, ids)
    held = cache.arena.nbytes
    for layer in cache.governed:  # whatever a reader gets to see of it turns the output to NaN
        layer.slab._k[:, :128] = float("nan")
        layer.slab._v[:, :128] = float("nan")
    cache.reset()
    assert cache.nbytes == 0
    assert cache.arena.nbytes == held
    assert cache.arena.free == 32
    assert torch.equal(logits(model, cache, ids), expected)
    assert cache.arena.nbytes == held


def test_memory_goes_at_once_where_told_to(model, ids, arena_cache):
    cache = arena_cache(reclaim="at-once")
    logits(model, cache, ids)
    assert cache.arena.resident > 0
    cache.reset()
    assert cache.arena.resident == cache.arena.nbytes == 0


def test_a_closed_cache_leaves_no_memory(model, ids, arena_cache):
    cache = arena_cache()
    logits(model, cache, ids)
    arena = cache.arena
    cache.close()
    assert arena.resident == 0


@torch.no_grad()
def test_caches_of_one_arena_do_not_touch_each_other(model, ids, arena_cache):
    first = arena_cache(slots=5)
    second = arena_cache(slots=5, arena=first.arena)
    other = ids.flip(1)
    one, two = (logits(model, DynamicCache(config=model.config), x) for x in (ids, other))
    model(input_ids=ids[:, :60], past_key_values=first)
    model(input_ids=other[:, :60], past_key_values=second)
    model(input_ids=ids[:, 60:], past_key_values=first)
    model(input_ids=other[:, 60:], past_key_values=second)
    for cache, x, expected in ((first, ids, one), (second, other, two)):
        step = model(input_ids=x[:, :1], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(step, expected[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(HostError, match="5 slots and no 2 adjacent free ones"):
        model(input_ids=ids, past_key_values=arena_cache(arena=first.arena))
    second.close()
    logits(model, arena_cache(arena=first.arena), ids)


def test_a_forgotten_cache_frees_its_slots(model, ids, arena_cache):
    arena = arena_cache().arena
    cache = recollect.kv_cache(model, "vattention", arena=arena)
    logits(model, cache, ids)
    assert arena.free == 30
    del cache
    gc.collect()
    assert arena.free == 32


@torch.no_grad()
def test_copies_live_in_the_same_arena(model, ids, arena_cache):
    cache = arena_cache()
    model(input_ids=ids, past_key_values=cache)
    twin = cache.copy()
    assert twin.arena is cache.arena
    assert cache.arena.free == 28
    expected = model(input_ids=ids[:, :5], past_key_values=cache).logits
    assert torch.equal(model(input_ids=ids[:, :5], past_key_values=twin).logits, expected)
    twin.close()


@torch.no_grad()
def test_rows_move_between_slots(model, ids, arena_cache):
    cache = arena_cache()
    model(input_ids=ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    assert cache.arena.free == 28
    cache.reorder_cache(torch.tensor([3, 0, 0, 1]))
    cache.batch_select_indices(torch.tensor([0, 1, 3]))
    assert cache.arena.free == 29
    question = ids[:, :3]
    expected = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=expected)
    rows = [1, 0, 0]
    expected.batch_select_indices(torch.tensor(rows))
    want = model(input_ids=question[rows], past_key_values=expected).logits
    assert torch.equal(model(input_ids=question[rows], past_key_values=cache).logits, want)


@torch.no_grad()
def test_rolled_back_tokens_are_overwritten(model, ids, arena_cache):
    cache, plain = arena_cache(), DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=plain)
    model(input_ids=ids, past_key_values=cache)
    model(input_ids=ids[:, :40], past_key_values=cache)
    cache.crop(-40)
    expected = model(input_ids=ids[:, 9:19], past_key_values=plain).logits
    assert torch.equal(model(input_ids=ids[:, 9:19], past_key_values=cache).logits, expected)


def test_a_limit_takes_memory_from_free_slots_first(model, ids):
    with recollect.kv_cache(model, "vattention", limit=3 * 2 * 3 * 4 * PAGE) as cache:
        logits(model, cache, ids)  # two slots of four pages in each of six tensors
        cache.reset()
        logits(model, cache, ids[:1])  # takes one of them
        held = cache.arena.nbytes
        with recollect.kv_cache(model, "vattention", arena=cache.arena) as other:
            logits(model, other, ids[:1].repeat(2, 1), steps=0)
            assert cache.arena.nbytes <= 3 * 2 * 3 * 4 * PAGE
            assert cache.arena.nbytes > held
            with (
                pytest.raises(HostError, match="the arena is full"),
                torch.no_grad(),
            ):
                model(input_ids=ids[:, :60], past_key_values=other)
            assert other.get_seq_length() == 120


class TestRefusals:
    @pytest.mark.parametrize("spec", ["snapkv + vattention", "vattention + kivi"])
    def test_an_arena_holds_whole_exact_sequences(self, spec, model):
        keep = {"keep": 0.5} if "snapkv" in spec else {}
        with pytest.raises(RecipeError, match="drop 'vattention'"):
            recollect.kv_cache(model, spec, **keep)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"slots": 0}, "slots must be at least 1"),
            ({"context": 0}, "context must be at least 1"),
            ({"limit": 0}, "limit is a number of bytes"),
            ({"reclaim": "never"}, "'deferred' or 'at-once'"),
        ],
    )
    def test_impossible_arenas(self, arguments, message, model):
        with pytest.raises(RecipeError, match=message):
            recollect.kv_cache(model, "vattention", **arguments)

    def test_only_vattention_takes_an_arena(self, model):
        with pytest.raises(RecipeError, match="leave arena out"):
            recollect.kv_cache(model, "full", arena=KVArena(VirtualSlots(), 100))

    @torch.no_grad()
    def test_more_tokens_than_a_slot_has_addresses_for(self, model, ids, arena_cache):
        cache = arena_cache(context=130)
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(HostError, match="context=132 or more"):
            model(input_ids=ids[:, :12], past_key_values=cache)
        model(input_ids=ids[:, :10], past_key_values=cache)  # the cache is as it was
        assert cache.get_seq_length() == 130

    @torch.no_grad()
    def test_an_arena_serves_one_model(self, model, ids, arena_cache):
        arena = KVArena(VirtualSlots(), 512)
        x = torch.zeros(1, 4, 3, 8)
        arena.tensors(0, x, x)
        cache = arena_cache(arena=arena)
        with pytest.raises(HostError, match="one model"):
            model(input_ids=ids, past_key_values=cache)
