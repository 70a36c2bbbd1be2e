"""Our scores and kept sets are kvpress 0.5.5's, on tensors recorded in its own environment.

`benchmarks/peers/make_fixtures.py` writes the fixture. kvpress stores no index order and breaks
ties as topk happens to; none of these tensors has ties at the threshold.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from recollect.core import attention_stats, budgets, scores
from recollect.core.rope import apply_rope, mean_rotation
from recollect.core.select import protect, ragged_indices, top_indices

FIXTURE = Path(__file__).parent / "fixtures" / "kvpress_small.safetensors"

with safe_open(FIXTURE, "pt") as file:
    DATA = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    ABOUT = file.metadata()
JOBS = {job["name"]: job for job in json.loads(ABOUT["jobs"])}
Q_PRE, KEYS, VALUES = (DATA[name] for name in ("q_pre", "k", "v"))
BATCH, KV_HEADS, TOKENS, WIDTH = KEYS.shape
SCALE = 1 / math.sqrt(WIDTH)


def angles(positions):
    inverse = 1.0 / float(ABOUT["theta"]) ** (torch.arange(0, WIDTH, 2).float() / WIDTH)
    phase = positions[:, None].float() * inverse
    phase = torch.cat((phase, phase), -1)
    return phase.cos(), phase.sin()


def score(job):
    """The score of a job by our composition of the same idea."""
    args = job["args"]
    queries = apply_rope(Q_PRE, *angles(torch.arange(TOKENS)))
    if job["press"] in ("SnapKVPress", "PyramidKVPress"):
        window = attention_stats.window_attention(
            queries[:, :, -args["window_size"] :], KEYS, SCALE
        )
        return scores.snapkv(window, KV_HEADS, kernel=args["kernel_size"])
    if job["press"] == "TOVAPress":
        return scores.tova(attention_stats.last_row(queries, KEYS, SCALE), KV_HEADS)
    if job["press"] == "KnormPress":
        return scores.key_norm(KEYS)
    if job["press"] == "KeyDiffPress":
        return scores.keydiff(KEYS)
    if job["press"] == "StreamingLLMPress":
        recency = torch.arange(TOKENS, dtype=torch.float32).expand(BATCH, KV_HEADS, TOKENS)
        return protect(recency, sinks=args["n_sink"])
    assert job["press"] == "ExpectedAttentionPress"
    future = torch.arange(TOKENS, TOKENS + args["n_future_positions"])
    rotation = mean_rotation(*angles(future), WIDTH)
    moments = scores.query_statistics(Q_PRE, args["n_sink"])
    return scores.expected_attention(
        *moments, KEYS, VALUES, rotation, epsilon=args["epsilon"], n_sink=args["n_sink"]
    )


def kept(job):
    """The kept set (B, K, T) of a job."""
    ours = protect(score(job), recent=1 if job["press"] == "TOVAPress" else 0)
    n = budgets.count_kept(job["keep"], TOKENS)
    if job["press"] == "PyramidKVPress":
        window, beta = job["args"]["window_size"], job["args"]["beta"]
        layers = budgets.pyramid_layers_kvpress(job["keep"], job["layers"], TOKENS, window, beta)
        n = layers[job["layer"]]
    stays = torch.zeros(ours.shape, dtype=torch.bool)
    if "ada" not in job:
        return stays.scatter_(2, top_indices(ours, n), True)
    index, lengths = ragged_indices(ours, budgets.flat_head_counts(ours, n, job["ada"]))
    heads = torch.arange(BATCH * KV_HEADS).repeat_interleave(lengths)
    stays.view(-1, TOKENS)[heads, index] = True
    return stays


def test_the_fixture_is_kvpress_as_pinned_and_covers_every_press():
    assert ABOUT["kvpress"] == "0.5.5"
    assert len({job["press"] for job in JOBS.values()} | {"ada"}) == 8


@pytest.mark.parametrize("name", JOBS)
def test_kept_sets_are_equal(name):
    assert kept(JOBS[name]).equal(DATA[f"{name}/kept"])


SCORED = [name for name in JOBS if "streaming" not in name]  # kvpress scores positions 0 and 1


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_equal(name):
    ours, theirs = score(JOBS[name]), DATA[f"{name}/score"]
    last = -1 if "tova" in name else None  # kvpress forces the newest token here; we protect later
    columns = slice(None, last)
    if name.startswith(("snapkv", "pyramid", "adakv", "expected")):
        # Forced tokens stand at max + 1: kvpress's maximum is over the batch, ours over the row.
        forced = theirs == theirs.max()
        assert (ours == ours.amax((1, 2), keepdim=True)).equal(forced)
        ours, theirs = ours.masked_fill(forced, 0), theirs.masked_fill(forced, 0)
    torch.testing.assert_close(ours[..., columns], theirs[..., columns], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_pyramid_budgets_are_equal_fallback_included(keep):
    layers = int(ABOUT["layers"])
    theirs = [int(DATA[f"pyramidkv-{i}@{keep}/kept"][0, 0].sum()) for i in range(layers)]
    assert budgets.pyramid_layers_kvpress(keep, layers, TOKENS, window=8, beta=4) == theirs
    assert (len(set(theirs)) == 1) == (keep == 0.25)
