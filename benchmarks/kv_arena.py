"""Question: what does a virtual arena cost and save against buffers that are copied to grow?

    python benchmarks/kv_arena.py
    python benchmarks/kv_arena.py --prompt 2048 --steps 64

A random Llama decodes greedily after one prompt with transformers' DynamicCache (which concatenates
at every step), StaticCache, and the recipe `vattention`, on the host's own attention kernel. Growth
alone (appending one token to all layers, no attention) is timed besides. Memory is what the
operating system counts behind the arena, against the bytes of the tokens held. Ratios are against
DynamicCache in the same run; times are medians, in processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import recollect
from recollect.core.arena import HostPages

HERE = Path(__file__).resolve().parent
HEADS, WIDTH = 4, 64


def build(layers: int) -> LlamaForCausalLM:
    """A random Llama with grouped queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=HEADS,
        head_dim=WIDTH,
        max_position_embeddings=32768,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def make(model: LlamaForCausalLM, kind: str, tokens: int) -> Any:
    """An empty cache of a kind."""
    if kind == "DynamicCache":
        return DynamicCache(config=model.config)
    if kind == "StaticCache":
        return StaticCache(config=model.config, max_cache_len=tokens)
    return recollect.kv_cache(model, "vattention", kernel="host")


@torch.no_grad()
def decode(model: LlamaForCausalLM, kind: str, prompt: int, steps: int) -> dict[str, Any]:
    """Greedy steps after a prompt: tokens, seconds per step, and memory at the end."""
    ids = torch.randint(2, 500, (1, prompt), generator=torch.Generator().manual_seed(0))
    cache = make(model, kind, prompt + steps + 1)
    token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    seconds, tokens = [], [int(token)]
    for _ in range(steps):
        began = time.process_time()
        token = model(input_ids=token, past_key_values=cache).logits.argmax(-1)
        seconds.append(time.process_time() - began)
        tokens.append(int(token))
    row: dict[str, Any] = {"cache": kind, "step_ms": 1e3 * statistics.median(seconds)}
    row["tokens"] = tokens
    if kind == "vattention":
        tensors = 2 * len(cache.governed)
        row["live_bytes"] = tensors * cache.get_seq_length() * HEADS * WIDTH * 4
        row["resident_bytes"] = cache.arena.resident
        row["pages_over_live"] = (row["resident_bytes"] - row["live_bytes"]) / (
            tensors * HostPages.page
        )
        cache.close()
    return row


@torch.no_grad()
def grow(model: LlamaForCausalLM, kind: str, prompt: int, steps: int) -> float:
    """Milliseconds to append one token to every layer, without attention."""
    layers = model.config.num_hidden_layers
    cache = make(model, kind, prompt + steps)
    first, new = torch.randn(1, HEADS, prompt, WIDTH), torch.randn(1, HEADS, 1, WIDTH)
    ours = kind == "vattention"
    for layer in range(layers):
        if ours:
            cache.layers[layer].hold(first, first)
        else:
            cache.update(first, first, layer)
    seconds = []
    for step in range(steps):
        began = time.process_time()
        for layer in range(layers):
            if ours:
                cache.layers[layer].slab.append(new, new, prompt + step)
                cache.layers[layer].slab.dense()
            else:
                cache.update(new, new, layer)
        seconds.append(time.process_time() - began)
    if ours:
        cache.close()
    return 1e3 * statistics.median(seconds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = build(given.layers), []
    for prompt in given.prompt:
        found = [
            {"prompt": prompt, "grow_ms": grow(model, kind, prompt, given.steps)}
            | decode(model, kind, prompt, given.steps)
            for kind in ("DynamicCache", "StaticCache", "vattention")
        ]
        expected = found[0]["tokens"]
        for row in found:
            row["same_tokens"] = row.pop("tokens") == expected
            row["grow_ratio"] = found[0]["grow_ms"] / row["grow_ms"]
            row["step_ratio"] = found[0]["step_ms"] / row["step_ms"]
        rows += found
    table = Table(title=f"{given.layers} layers, {HEADS} KV heads of {WIDTH}, float32, one thread")
    for heading in ("prompt", "cache", "append ms", "x", "step ms", "x", "pages over live"):
        table.add_column(heading, justify="left" if heading == "cache" else "right")
    for row in rows:
        pages = row.get("pages_over_live")
        table.add_row(
            f"{row['prompt']:,}", row["cache"], f"{row['grow_ms']:.3f}",
            f"{row['grow_ratio']:.1f}", f"{row['step_ms']:.1f}", f"{row['step_ratio']:.2f}",
            "" if pages is None else f"{pages:.2f} per tensor",
        )  # fmt: skip
    Console(width=100).print(table)
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "times": "processor milliseconds of one thread, median of the steps",
    }
    target = HERE / "results" / "kv_arena.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
