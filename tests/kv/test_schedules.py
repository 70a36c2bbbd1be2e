"""When layers decide: bounded peaks, constant sizes, prompts in chunks."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import recollect
from recollect.kv.schedules import EverySteps, PerBlock


@pytest.fixture
def peaks(model):
    """The most tokens any head of any layer held at the end of each forward pass."""
    seen = []

    def watch(_module, _args, kwargs, _output):
        cache = kwargs["past_key_values"]
        seen.append(max(int(layer.kept.max()) for layer in cache.governed))

    hook = model.register_forward_hook(watch, with_kwargs=True)
    yield seen
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["snapkv", "h2o", "knorm", "adakv", "expected-attention", "tova", "expected-attention + adakv"],
)
def test_blocks_keep_the_peak_bounded(name, model, ids, peaks, arguments):
    args = {**arguments.get(name, {}), "schedule": PerBlock()}
    with recollect.kv_cache(model, name, keep=32, **args) as cache:
        during = []
        for layer in cache.governed:
            update = layer.update

            def watched(k, v, *rest, layer=layer, update=update):
                during.append(int(layer.kept.max()) + k.shape[2] if layer.slab else k.shape[2])
                return update(k, v, *rest)

            layer.update = watched
        cache.prefill(ids, chunk=24)
        flat = 2 if "adakv" in name else 1  # one head may take the other's share
        assert max(during) <= flat * 32 + 24
        assert all(layer.kept.float().mean() == 32 for layer in cache.governed)
        assert cache.get_seq_length() == ids.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["h2o", "tova", "streaming-llm"])
def test_every_step_keeps_the_size_constant(name, model, ids, peaks, arguments):
    args = arguments.get(name, {})
    with recollect.kv_cache(model, name, keep=0.25, **args) as cache:
        model.generate(ids, past_key_values=cache, max_new_tokens=30, do_sample=False)
        assert max(peaks) <= 30 + args.get("steps", 1) - 1
        assert cache.get_seq_length() == ids.shape[1] + 29


@torch.no_grad()
@pytest.mark.parametrize("name", ["snapkv", "knorm", "h2o", "expected-attention", "chelsea"])
@pytest.mark.parametrize("chunk", [7, 50])
def test_a_prompt_in_chunks_is_decided_like_a_whole_one(name, chunk, model, ids, arguments):
    """With one decision at the end, chunks only change how the prompt was computed."""
    args = dict(arguments.get(name, {}))
    if name == "h2o":
        from recollect.kv.schedules import AfterPrefill

        args["schedule"] = AfterPrefill()
    with (
        recollect.kv_cache(model, name, keep=0.5, **args) as whole,
        recollect.kv_cache(model, name, keep=0.5, **args) as parts,
    ):
        model(input_ids=ids, past_key_values=whole)
        parts.prefill(ids, chunk=chunk)
        for a, b in zip(whole.governed, parts.governed, strict=True):
            one, other = (layer.slab.column("position") for layer in (a, b))
            # Chunks change sums in the last bits, which may swap two tokens of nearly one score.
            shared = (one[..., None] == other[..., None, :]).any(-1).float().mean()
            assert shared > 0.95


@torch.no_grad()
def test_h2o_spends_half_on_heavy_hitters_and_half_on_recent_tokens(model, ids):
    with recollect.kv_cache(model, "h2o", keep=20, schedule=EverySteps(1)) as cache:
        model(input_ids=ids, past_key_values=cache)
        for step in range(5):
            model(input_ids=ids[:, step : step + 1], past_key_values=cache)
        newest = set(range(ids.shape[1] + 5 - 10, ids.shape[1] + 5))
        for layer in cache.governed:
            positions = layer.slab.column("position")
            assert positions.shape[-1] == 20
            for row in positions.reshape(-1, 20).tolist():
                assert newest <= set(row)


@torch.no_grad()
def test_streaming_equals_a_fresh_pass_over_what_is_kept():
    """With one layer, keys do not depend on dropped context: contiguous positions are all there is
    to StreamingLLM, and a fresh pass over sinks and recents must give the same logits."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
            eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    tokens = torch.randint(1, 64, (1, 300))
    with recollect.kv_cache(model, "streaming-llm", keep=32, steps=1) as cache:
        model(input_ids=tokens[:, :40], past_key_values=cache)
        for t in range(40, 299):
            model(input_ids=tokens[:, t : t + 1], past_key_values=cache)
        actual = model(input_ids=tokens[:, 299:], past_key_values=cache).logits
    kept = torch.cat([tokens[:, :4], tokens[:, 299 - 28 :]], 1)
    expected = model(input_ids=kept).logits[:, -1:]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["snapkv", "h2o", "expected-attention"])
def test_a_padded_batch_in_chunks_learns_its_padding(name, model, ids, arguments):
    """The padding of the second row is longer than the first chunk."""
    from recollect.kv.schedules import AfterPrefill

    args = {**arguments.get(name, {}), "schedule": AfterPrefill()}
    mask = torch.ones_like(ids)
    mask[1, :37] = 0
    with (
        recollect.kv_cache(model, name, keep=0.5, **args) as together,
        recollect.kv_cache(model, name, keep=0.5, **args) as alone,
    ):
        together.prefill(ids * mask, chunk=30, attention_mask=mask)
        alone.prefill(ids[1:, 37:], chunk=83)
        for a, b in zip(together.governed, alone.governed, strict=True):
            assert a.padding.tolist() == [0, 37]
            assert a.kept[1].tolist() == b.kept[0].tolist() == [41, 41]


@torch.no_grad()
def test_blocks_that_are_all_padding_are_refused(model, ids):
    mask = torch.ones_like(ids)
    mask[1, :37] = 0
    with (
        recollect.kv_cache(model, "knorm", keep=20, schedule=PerBlock()) as cache,
        pytest.raises(recollect.HostError, match="larger chunks"),
    ):
        cache.prefill(ids * mask, chunk=30, attention_mask=mask)
