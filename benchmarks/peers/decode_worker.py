"""Decode with one of transformers' own caches and print what a token cost, as one line of JSON.

Run by `benchmarks/kv_end_to_end.py` with the interpreter of the environment that has the cache's
backend. It needs torch and transformers only.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache


def nbytes(value: object, seen: set[int]) -> int:
    """Bytes of every tensor storage reachable from a cache layer."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        inner = [getattr(value, name, None) for name in ("_data", "_scale", "_shift")]
        inner = [t for t in inner if isinstance(t, torch.Tensor)]
        if inner:
            return sum(nbytes(t, seen) for t in inner)
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(nbytes(item, seen) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(nbytes(item, seen) for item in value)
    if hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        return sum(nbytes(item, seen) for item in vars(value).values())
    return 0


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, required=True, help="tokens")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cache", choices=["dynamic", "quanto", "hqq"], required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    if args.cache == "dynamic":
        cache = DynamicCache(config=model.config)
    else:
        cache = QuantizedCache(args.cache, model.config, nbits=args.bits)
    ids = torch.randint(2, 500, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    wall, cpu = [], []
    for _ in range(args.steps):
        started, spent = time.perf_counter(), time.process_time()
        logits = model(input_ids=token, past_key_values=cache).logits
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
        token = logits.argmax(-1)
    held = sum(nbytes(vars(layer), set()) for layer in cache.layers)
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": held}))


if __name__ == "__main__":
    main()
