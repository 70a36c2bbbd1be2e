"""`use` and the life of an attachment: pipelines get the recipe, the model gets itself back."""

import gc

import pytest
import torch
from transformers import DynamicCache

import recollect
from recollect.errors import RecipeError


def generate(model, ids, **options):
    return model.generate(ids, max_new_tokens=5, do_sample=False, **options)


def test_generate_without_a_cache_follows_the_recipe(model, ids):
    expected = generate(model, ids)
    with recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache:
        compressed = generate(model, ids, past_key_values=cache)
    with recollect.use(model, "snapkv", keep=0.5, window=8) as caches:
        assert torch.equal(generate(model, ids), compressed)
        assert torch.equal(generate(model, ids), compressed)
        assert [cache.get_seq_length() for cache in caches] == [124, 124]
        assert all(cache.nbytes < cache.dense_nbytes for cache in caches)
    assert torch.equal(generate(model, ids), expected)


def test_caches_that_hold_something_pass_untouched(model, ids):
    with torch.no_grad(), recollect.use(model, "snapkv", keep=0.5, window=8) as caches:
        given = DynamicCache(config=model.config)
        given.update(*torch.zeros(2, 2, 2, 3, 16).unbind(), 0)
        out = model(input_ids=ids, use_cache=False)
        assert out.past_key_values is None
        assert caches[-1].get_seq_length() == 0


def test_errors_come_at_the_door(model):
    hooks = dict(model._forward_pre_hooks)
    with pytest.raises(RecipeError), recollect.use(model, "snapkv", keep=2.0):
        pass
    assert dict(model._forward_pre_hooks) == hooks


def test_the_model_is_restored_exactly(model, ids):
    before = (model.config._attn_implementation, len(model._forward_pre_hooks))
    with recollect.use(model, "expected-attention", keep=0.5):
        generate(model, ids)
    one = recollect.kv_cache(model, "expected-attention", keep=0.5)
    two = recollect.kv_cache(model, "full")
    assert model.config._attn_implementation != before[0]
    one.close()
    assert model.config._attn_implementation != before[0]  # the other still needs it
    del two
    gc.collect()
    assert (model.config._attn_implementation, len(model._forward_pre_hooks)) == before
    assert not any(len(m._forward_pre_hooks) for m in model.modules())


def test_the_host_s_own_caches_work_while_attached(model, ids):
    expected = generate(model, ids)
    with recollect.kv_cache(model, "full"):
        assert torch.equal(generate(model, ids, past_key_values=DynamicCache()), expected)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_memory_is_freed_when_a_cache_is_closed(model, ids):
    with torch.no_grad():
        cache = recollect.kv_cache(model, "full")
        model(input_ids=ids, past_key_values=cache)
        assert cache.nbytes > 0
        cache.close()
        assert cache.nbytes == 0
