"""Run kvpress presses on given tensors, inside kvpress's own environment.

    .venvs/kvpress/bin/python benchmarks/peers/kvpress_worker.py in.safetensors out.safetensors

The input holds `q_pre` (B, H, T, D) queries before RoPE, `k` and `v` (B, K, T, D) with rotated
keys, and in its metadata `theta` (RoPE base) and `jobs`: a JSON list of objects with `name`,
`press` (class name), `args` (its fields), and optionally `ada` (AdaKV's floor), `layer` and
`layers`, `repeat` (time it so often). The output holds per job the scores `NAME/score` (B, K, T)
and the kept set `NAME/kept` (B, K, T) bool; its metadata the seconds of each job's `compress`.

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


def run(job, q, k, v, theta):
    """Scores, kept set and best time in seconds of one job."""
    rotary = Rotary(q.shape[3], theta)
    module = Attention(q, k, rotary, job)
    hidden = q.transpose(1, 2).flatten(2)
    positions = torch.arange(k.shape[2])[None]
    kwargs = {"position_embeddings": rotary(k, positions)}
    scorer = getattr(kvpress, job["press"])(**job["args"])
    press = kvpress.AdaKVPress(scorer, alpha_safeguard=job["ada"]) if "ada" in job else scorer
    scores = scorer.score(module, hidden, k, v, None, kwargs)
    kept = kept_set(press, module, hidden, k, v, kwargs, scores.clone(), "ada" in job)
    seconds = []
    for _ in range(job.get("repeat", 0)):
        start = time.perf_counter()
        press.compress(module, hidden, k, v, None, kwargs)
        seconds.append(time.perf_counter() - start)
    return scores, kept, min(seconds, default=0.0)


def main(source: str, target: str) -> None:
    """Work through the jobs of `source` and write `target`."""
    with safe_open(source, "pt") as file:
        q, k, v = (file.get_tensor(name) for name in ("q_pre", "k", "v"))
        about = file.metadata()
    tensors, seconds = {}, {}
    with torch.inference_mode():
        for job in json.loads(about["jobs"]):
            scores, kept, seconds[job["name"]] = run(job, q, k, v, float(about["theta"]))
            tensors[f"{job['name']}/score"] = scores.contiguous().clone()
            tensors[f"{job['name']}/kept"] = kept
    save_file(tensors, target, {"seconds": json.dumps(seconds), "torch": torch.__version__})


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
