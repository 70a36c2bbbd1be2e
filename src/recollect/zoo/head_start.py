"""A head start: initial weights in which the circuit for copying is already sketched.

Transformers find things again with two heads in a row: one tells every position which token came
before it, a later one looks for the position whose previous token is the current one and copies
what stands there (Olsson et al. 2022). Training finds this circuit from random weights too, after
millions of tokens in which nothing else about recall is learned. Here it is drawn roughly into the
initial weights and everything is trained from there, which makes an hour on a CPU enough.
"""

from __future__ import annotations

from typing import Any

import torch

EMBEDDING = 0.05  # standard deviation of the embeddings
CONSTANT = 4.0  # the first channel of every embedding, in standard deviations
WRITTEN = 0.125  # size of what the first layer writes, relative to what it reads
COPIED = 1.0  # size of what the later layers copy
FAST_PAIRS = 4  # RoPE pairs that tell neighbours apart
SLOW_FROM = 7  # first RoPE pair that hardly turns over a few hundred tokens
SHARP = 2.5  # weight of the constant channel in queries and keys that look back
MATCH = 3.0  # weight of what is compared in queries and keys that match
GAIN = 3.0  # of normalized queries and keys


@torch.no_grad()
def sketch_copying(model: Any, seed: int = 0) -> Any:
    """Draw the copying circuit into a fresh model, in place: the first three layers.

    Layer 0 writes the token before and the one before that, in spaces of their own; layers 1 and 2
    look for positions that carry the current token there, and copy what they find.

    Args:
        model: a Qwen3. Its norms on queries and keys keep the sketch sharp while it is trained;
            without them it blurs faster than it is learned.
        seed: of the random spaces.
    """
    generator = torch.Generator().manual_seed(seed)
    config, layers = model.config, model.model.layers
    embedding = model.get_input_embeddings().weight
    embedding.normal_(0, EMBEDDING, generator=generator)
    embedding[:, 0] = CONSTANT * EMBEDDING
    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** -(torch.arange(config.head_dim // 2) / (config.head_dim // 2))

    spaces = _look_back(layers[0].self_attn, config, frequencies, generator)
    for layer in layers[1:3]:
        _match_and_copy(layer.self_attn, config, spaces, generator)
    return model


def _look_back(
    attention: Any, config: Any, frequencies: torch.Tensor, generator: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Heads that attend one and two tokens back. Returns what they read and where they write it."""
    width, half = config.head_dim, config.head_dim // 2
    group = config.num_attention_heads // config.num_key_value_heads
    _set_gain(attention)
    # Orthogonal spaces: what is written must not drown what the queries of later layers read.
    free = iter(_orthonormal(5 * width, config.hidden_size, generator).split(width))
    attention.o_proj.weight *= 0.1  # heads without a part to play start quietly
    spaces = []
    for head in range(min(2, config.num_key_value_heads)):
        rows = slice(head * width, (head + 1) * width)
        attention.k_proj.weight[rows] *= 0.2
        attention.k_proj.weight[rows][:FAST_PAIRS, 0] = SHARP
        reading = next(free)
        attention.v_proj.weight[rows] = reading
        for back in (1, 2) if head == 0 else (1,):
            query = head * group + back - 1
            rows = slice(query * width, (query + 1) * width)
            attention.q_proj.weight[rows] *= 0.2
            turn = back * frequencies[:FAST_PAIRS]
            attention.q_proj.weight[rows][:FAST_PAIRS, 0] = SHARP * turn.cos()
            attention.q_proj.weight[rows][half : half + FAST_PAIRS, 0] = -SHARP * turn.sin()
            writing = next(free)
            attention.o_proj.weight[:, rows] = WRITTEN * writing.T
            if back == 1:
                spaces.append((reading, writing))
    return spaces


def _match_and_copy(
    attention: Any,
    config: Any,
    spaces: list[tuple[torch.Tensor, torch.Tensor]],
    generator: torch.Generator,
) -> None:
    """Heads whose keys are the previous token, whose queries are the current one."""
    width, half = config.head_dim, config.head_dim // 2
    group = config.num_attention_heads // config.num_key_value_heads
    _set_gain(attention)
    slow = torch.cat([torch.arange(SLOW_FROM, half), torch.arange(half + SLOW_FROM, width)])
    for head in range(config.num_key_value_heads):
        reading, writing = spaces[head % len(spaces)]
        mixing = _orthonormal(len(slow), width, generator)
        rows = slice(head * width, (head + 1) * width)
        attention.k_proj.weight[rows][slow] = MATCH * mixing @ writing
        copying = _orthonormal(width, config.hidden_size, generator)
        attention.v_proj.weight[rows] = copying
        for query in range(head * group, (head + 1) * group):
            rows = slice(query * width, (query + 1) * width)
            attention.q_proj.weight[rows][slow] = MATCH * mixing @ reading
            attention.o_proj.weight[:, rows] = COPIED / group * copying.T


def _set_gain(attention: Any) -> None:
    attention.q_norm.weight.fill_(GAIN)
    attention.k_norm.weight.fill_(GAIN)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Random orthonormal rows that do not read the constant channel."""
    made = torch.linalg.qr(torch.randn(columns - 1, rows, generator=generator))[0].T
    return torch.cat([torch.zeros(rows, 1), made], 1)
