"""Head gates: heads that a text needs stay open, others close, the model is left as it was."""

import pytest
import torch

import recollect
from recollect.errors import RecipeError
from recollect.kv import calibrate_gates
from recollect.kv.artefacts import load_gates
from recollect.kv.fingerprint import fingerprint


def texts(steps, length=96):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(2, 256, (2, length), generator=generator)
        weight = torch.zeros(ids.shape)
        weight[:, -16:] = 1
        yield ids, weight


def test_heads_that_do_not_matter_close(model, tmp_path):
    """Head 1 of layer 0 gets a zero value projection: whatever it attends to changes nothing."""
    projection = model.model.layers[0].self_attn.v_proj.weight
    kept = projection.detach().clone()
    before = (fingerprint(model), model.config._attn_implementation)
    path = tmp_path / "gates.safetensors"
    try:
        with torch.no_grad():
            projection[16:32] = 0
        gates = calibrate_gates(
            model, texts(25), path, sinks=2, recent=8, learning_rate=0.1, penalty=1e-3
        )
    finally:
        with torch.no_grad():
            projection.copy_(kept)
    assert gates[0, 1] == 0
    assert gates[0, 0] > 0.2
    assert (fingerprint(model), model.config._attn_implementation) == before
    assert torch.equal(load_gates(path)[0], gates)


@torch.no_grad()
def test_streaming_heads_hold_a_window_and_retrieval_heads_everything(model, ids, gates):
    args = {"gates": gates, "recent": 16, "steps": 2}
    with recollect.kv_cache(model, "duo-attention", keep=0.6, **args) as cache:
        model(input_ids=ids, past_key_values=cache)
        for step in range(6):
            model(input_ids=ids[:, step : step + 1], past_key_values=cache)
        for layer in cache.governed:
            for kept in layer.kept[0].tolist():
                assert kept in (20, 126)
        open_heads = [[n == 126 for n in layer.kept[0].tolist()] for layer in cache.governed]
        # (0.6 * 120 - 20) / (120 - 20) = 52% of 6 heads: three, those with the highest gates
        assert open_heads == [[True, False], [False, True], [False, True]]


def test_no_texts_are_refused(model, tmp_path):
    with pytest.raises(RecipeError, match="no texts"):
        calibrate_gates(model, [], tmp_path / "gates.safetensors")
