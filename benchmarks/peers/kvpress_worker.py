"""Run kvpress presses on given tensors, inside kvpress's own environment.

    .venvs/kvpress/bin/python benchmarks/peers/kvpress_worker.py in.safetensors out.safetensors 1

The input holds `q_pre` (B, H, T, D) queries before RoPE, `k` and `v` (B, K, T, D) with rotated
keys, and in its metadata `theta` (RoPE base) and `jobs`: a JSON list of objects with `name`,
`press` (class name), `args` (its fields), and optionally `ada` (AdaKV's floor), `layer` and
`layers`. The output holds per job the scores `NAME/score` (B, K, T) and the kept set `NAME/kept`
(B, K, T) bool. When it is written the worker prints `ready` and from then on answers every job
name on its input with the processor seconds of one more `compress`, until the input ends. The last
argument is the number of threads.

A press wants an attention module: a stub with an identity query projection stands in, so the
queries are the given ones and no projection is timed.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import kvpress
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from steady_memory import keep_freed_memory


class Rotary(torch.nn.Module):
    """The default rotary embedding, as transformers' Llama calls it."""

    def __init__(self, dim: int, theta: float) -> None:
        super().__init__()
        self.inverse = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].float() * self.inverse
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Attention(torch.nn.Module):
    """What a press reads of an attention layer."""

    def __init__(self, q, k, rotary, job) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_attention_heads=q.shape[1],
            num_key_value_heads=k.shape[1],
            num_hidden_layers=job.get("layers", 1),
            _attn_implementation="sdpa",
        )
        self.head_dim = q.shape[3]
        self.layer_idx = job.get("layer", 0)
        self.q_proj = torch.nn.Identity()
        self.rotary_emb = rotary


def kept_set(press, module, hidden, k, v, kwargs, scores, ada):
    """Which tokens `compress` keeps, as (B, K, T) bool."""
    kept = torch.ones(k.shape[:3], dtype=torch.bool)
    if ada:
        press.compress(module, hidden, k, v, None, kwargs)
        kept[module.masked_key_indices] = False
        return kept
    # compress() gathers keys without telling which: let it gather positions by the same scores.
    positions = torch.arange(k.shape[2], dtype=torch.float32)[None, None, :, None].expand_as(k)
    press.score = lambda *_: scores
    gathered, _ = press.compress(module, hidden, positions, positions, None, kwargs)
    del press.score
    return torch.zeros_like(kept).scatter_(2, gathered[..., 0].long(), True)


def prepare(job, q, k, v, theta):
    """Scores and kept set of one job, and a function that compresses once more."""
    rotary = Rotary(q.shape[3], theta)
    module = Attention(q, k, rotary, job)
    hidden = q.transpose(1, 2).flatten(2)
    positions = torch.arange(k.shape[2])[None]
    kwargs = {"position_embeddings": rotary(k, positions)}
    scorer = getattr(kvpress, job["press"])(**job["args"])
    press = kvpress.AdaKVPress(scorer, alpha_safeguard=job["ada"]) if "ada" in job else scorer
    scores = scorer.score(module, hidden, k, v, None, kwargs)
    kept = kept_set(press, module, hidden, k, v, kwargs, scores.clone(), "ada" in job)
    return scores, kept, lambda: press.compress(module, hidden, k, v, None, kwargs)


def answer_timings(compress) -> None:
    """Read job names, print the seconds one more `compress` of each takes."""
    for line in sys.stdin:
        start = time.process_time()
        compress[line[:-1]]()
        print(time.process_time() - start, flush=True)


@torch.inference_mode()
def main(source: str, target: str, threads: str) -> None:
    """Work through the jobs of `source`, write `target`, then answer timings."""
    torch.set_num_threads(int(threads))
    keep_freed_memory()
    with safe_open(source, "pt") as file:
        q, k, v = (file.get_tensor(name) for name in ("q_pre", "k", "v"))
        about = file.metadata()
    tensors, compress = {}, {}
    for job in json.loads(about["jobs"]):
        name = job["name"]
        scores, kept, compress[name] = prepare(job, q, k, v, float(about["theta"]))
        tensors |= {f"{name}/score": scores.contiguous().clone(), f"{name}/kept": kept}
    save_file(tensors, target)
    print("ready", flush=True)
    answer_timings(compress)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
