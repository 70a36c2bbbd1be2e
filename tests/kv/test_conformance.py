"""Invariants that every registered recipe passes by being registered."""

import pytest
import torch
from transformers import DynamicCache

import recollect
from recollect.kv.policy import policy, stages_of
from recollect.recipe import recipes

NAMES = [recipe.name for recipe in recipes("kv")]
WHOLE = ("full", "kivi", "vattention")  # recipes that drop nothing
DROPPING = [name for name in NAMES if name not in WHOLE]
ONCE = [name for name in DROPPING if not policy(name).schedule.repeats]
COMPOSED = ["snapkv + kivi", "adakv + kivi", "expected-attention + adakv", "h2o + adakv"]


def args_of(spec, arguments):
    merged = {}
    for name in spec.split(" + "):
        merged |= arguments.get(name, {})
    known = {name for stage in stages_of(policy(spec)).values() for name in vars(stage)}
    return {name: value for name, value in merged.items() if name in known}


def run(model, cache, ids, new=6, **inputs):
    """Logits of a prefill and of greedy steps after it."""
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
    logits = [out.logits[:, -1]]
    mask = inputs.get("attention_mask")
    for _ in range(new):
        token = logits[-1].argmax(-1, keepdim=True)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            position = {"attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1}
        else:
            position = {}
        out = model(input_ids=token, past_key_values=cache, use_cache=True, **position)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)


@pytest.fixture
def make(model, arguments):
    """Make a cache for the small model with arguments that fit it; closed after the test."""
    caches = []

    def make_cache(spec, **more):
        kwargs = {**args_of(spec, arguments), **more}
        caches.append(recollect.kv_cache(model, spec, **kwargs))
        return caches[-1]

    yield make_cache
    for cache in caches:
        cache.close()


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NAMES if n != "kivi"])
def test_keep_one_is_identical_to_the_host_cache(name, model, make, ids):
    expected = run(model, DynamicCache(config=model.config), ids)
    assert torch.equal(run(model, make(name, keep=1.0, kernel="host"), ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NAMES if n != "kivi"])
def test_our_kernels_agree_with_the_host_at_keep_one(name, model, make, ids):
    expected = run(model, DynamicCache(config=model.config), ids)
    actual = run(model, make(name, keep=1.0, kernel="ours"), ids)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", DROPPING)
def test_a_budget_above_the_sequence_changes_nothing(name, model, make, ids):
    if name == "duo-attention":
        pytest.skip("its streaming heads hold a fixed window whatever the budget")
    expected = run(model, DynamicCache(config=model.config), ids)
    assert torch.equal(run(model, make(name, keep=500, kernel="host"), ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*DROPPING, *COMPOSED])
@pytest.mark.parametrize("keep", [0.5, 40])
def test_the_budget_is_spent_exactly(spec, keep, model, make, ids):
    cache = make(spec, keep=keep)
    model(input_ids=ids, past_key_values=cache)
    per_head = 60 if keep == 0.5 else 40
    kept = torch.stack([layer.kept for layer in cache.governed])  # (L, B, K)
    if spec == "duo-attention":
        assert (kept.sum((0, 2)) <= per_head * kept.shape[0] * kept.shape[2]).all()
    else:
        assert (kept.sum((0, 2)) == per_head * kept.shape[0] * kept.shape[2]).all()


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_the_kernels_agree_with_the_host_s_own_attention(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    if "kivi" in spec:
        keep["recent"] = 16
    ours = run(model, make(spec, kernel="ours", **keep), ids)
    theirs = run(model, make(spec, kernel="host", **keep), ids)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*ONCE, "snapkv + kivi"])
def test_attention_equals_the_host_with_dropped_tokens_masked(spec, model, make, ids):
    """An oracle that shares no code: the full cache, and a mask over what each head let go."""
    if spec in ("chelsea", "snapkv + kivi"):
        pytest.skip("what stays is changed, not only chosen")
    cache = make(spec, keep=0.5)
    out = model(input_ids=ids, past_key_values=cache)
    kept = [_kept_positions(layer) for layer in cache.governed]
    token = out.logits[:, -1:].argmax(-1)
    actual = model(input_ids=token, past_key_values=cache).logits
    full = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=full)
    expected = _step_with_masks(model, full, token, kept)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def _kept_positions(layer):
    slab, kept = layer.slab, []
    for start, length in zip(slab.starts.tolist(), slab.lengths.tolist(), strict=True):
        kept.append(set(slab.columns["position"][start : start + length].tolist()))
    return kept


def _step_with_masks(model, cache, token, kept):
    """One decoding step of an eager transformer written out, with a mask for every head."""
    length = cache.get_seq_length()
    position = torch.full((len(token), 1), length)
    hidden = model.model.embed_tokens(token)
    cos, sin = model.model.rotary_emb(hidden, position)

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    for index, block in enumerate(model.model.layers):
        attn, normed = block.self_attn, block.input_layernorm(hidden)
        q, k, v = (
            getattr(attn, f"{n}_proj")(normed).view(len(token), 1, -1, 16).transpose(1, 2)
            for n in "qkv"
        )
        k = torch.cat([cache.layers[index].keys, rotate(k)], 2).repeat_interleave(2, 1)
        v = torch.cat([cache.layers[index].values, v], 2).repeat_interleave(2, 1)
        logits = rotate(q) @ k.transpose(2, 3) / 4
        for b in range(len(token)):
            for h in range(4):
                gone = set(range(length)) - kept[index][b * 2 + h // 2]
                logits[b, h, 0, sorted(gone)] = -torch.inf
        out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(len(token), 1, -1)
        hidden = hidden + attn.o_proj(out)
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_a_padded_row_equals_the_same_row_alone(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    short = ids[1:, 37:]
    batch, mask = ids.clone(), torch.ones_like(ids)
    batch[1, :37], mask[1, :37] = 0, 0
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    together = run(model, make(spec, **keep), batch, attention_mask=mask, position_ids=position)
    alone = run(model, make(spec, **keep), short)
    torch.testing.assert_close(together[:, 1:], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_permuting_the_batch_permutes_the_result(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    one = run(model, make(spec, **keep), ids)
    other = run(model, make(spec, **keep), ids.flip(0))
    torch.testing.assert_close(one.flip(1), other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_a_reset_cache_remembers_nothing(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    fresh = run(model, make(spec, **keep), ids)
    cache = make(spec, **keep)
    run(model, cache, ids.flip(1))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(run(model, cache, ids), fresh)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_one_chunk_as_large_as_the_prompt_is_a_plain_prefill(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    plain, chunked = make(spec, **keep), make(spec, **keep)
    model(input_ids=ids, past_key_values=plain)
    chunked.prefill(ids, chunk=ids.shape[1])
    for a, b in zip(plain.governed, chunked.governed, strict=True):
        assert torch.equal(a.kept, b.kept)
        assert torch.equal(a.slab.k, b.slab.k)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_a_copy_is_independent_and_a_saved_cache_comes_back(spec, model, make, ids, tmp_path):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    cache = make(spec, **keep)
    model(input_ids=ids, past_key_values=cache)
    twin = cache.copy()
    cache.save(tmp_path / "cache.safetensors")
    loaded = recollect.load_cache(model, tmp_path / "cache.safetensors")
    question = ids[:, :5]
    expected = model(input_ids=question, past_key_values=cache).logits
    for other in (twin, loaded):
        assert torch.equal(model(input_ids=question, past_key_values=other).logits, expected)
        assert torch.equal(run(model, other, ids[:, :3]), run(model, cache.copy(), ids[:, :3]))
        other.close()


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_rows_of_the_batch_can_be_reordered_repeated_and_selected(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 0.5}
    cache = make(spec, **keep)
    model(input_ids=ids, past_key_values=cache)
    question = ids[:, :3]
    expected = model(input_ids=question, past_key_values=cache.copy()).logits
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([True, True, False, True]))
    actual = model(input_ids=question[[1, 0, 1]], past_key_values=cache).logits
    torch.testing.assert_close(actual, expected[[1, 0, 1]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*NAMES, *COMPOSED])
def test_later_tokens_can_be_rolled_back(spec, model, make, ids):
    keep = {} if spec in WHOLE else {"keep": 50}  # the codec has room for 4 more
    cache = make(spec, **keep)
    if cache.policy.schedule.repeats and cache.policy.keep != 1.0:
        pytest.skip("evicted again since: what was dropped cannot come back")
    model(input_ids=ids, past_key_values=cache)
    before = cache.copy()
    model(input_ids=ids[:, :4], past_key_values=cache)
    cache.crop(-4)
    assert cache.get_seq_length() == ids.shape[1]
    expected = model(input_ids=ids[:, 7:9], past_key_values=before).logits
    actual = model(input_ids=ids[:, 7:9], past_key_values=cache).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("spec", [*DROPPING, *COMPOSED])
def test_bytes_reported_are_bytes_allocated(spec, model, make, ids):
    cache = make(spec, keep=0.25)
    run(model, cache, ids)
    assert cache.nbytes == sum(s.nbytes() for s in _storages(cache))
    assert cache.report().nbytes == cache.nbytes


def _storages(cache):
    """Every tensor storage reachable from the layers, found by walking their attributes."""
    found, seen, todo = {}, set(), [layer.__dict__ for layer in cache.governed]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr(), storage.nbytes()] = storage
        elif isinstance(value, dict):
            todo.extend(v for k, v in value.items() if k != "plan")
        elif isinstance(value, (list, tuple)):
            todo.extend(value)
        elif type(value).__module__.startswith("recollect"):
            todo.append(vars(value))
    return found.values()


@torch.no_grad()
@pytest.mark.parametrize("name", ["snapkv", "knorm", "expected-attention"])
def test_kept_sets_are_nested_in_keep(name, model, make, ids):
    smaller, larger = make(name, keep=0.25), make(name, keep=0.5)
    for cache in (smaller, larger):
        model(input_ids=ids, past_key_values=cache)
    for a, b in zip(smaller.governed, larger.governed, strict=True):
        for few, many in zip(_kept_positions(a), _kept_positions(b), strict=True):
            assert few <= many


@torch.no_grad()
def test_heads_of_different_lengths_take_only_what_they_keep(model):
    long = torch.randint(2, 256, (1, 2000), generator=torch.Generator().manual_seed(3))
    with recollect.kv_cache(model, "adakv", keep=0.25) as cache:
        model(input_ids=long, past_key_values=cache)
        assert any(len(set(layer.kept[0].tolist())) > 1 for layer in cache.governed)
        assert cache.nbytes <= 0.27 * cache.dense_nbytes
