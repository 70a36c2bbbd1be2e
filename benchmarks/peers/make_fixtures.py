"""Write the fixture that lets the tests check parity with kvpress where kvpress is not installed.

    .venv/bin/python benchmarks/peers/make_fixtures.py

Small random tensors of one attention layer and what kvpress 0.5.5 scores and keeps on them, to
`tests/core/fixtures/kvpress_small.safetensors`. Data only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from kvpress_client import Inputs, Kvpress, angles
from safetensors.torch import save_file

from recollect.core.rope import apply_rope

TARGET = Path(__file__).resolve().parents[2] / "tests/core/fixtures/kvpress_small.safetensors"
BATCH, HEADS, KV_HEADS, TOKENS, WIDTH, LAYERS = 2, 4, 2, 80, 16, 4
THETA = 10000.0


def jobs() -> list[dict]:
    """Every press at two budgets; PyramidKV in every layer of a small model."""
    snap = {"window_size": 8, "kernel_size": 5}
    ea = {"n_future_positions": 64, "n_sink": 4, "epsilon": 0.01}
    found = []
    for keep in (0.5, 0.25):
        ratio = {"compression_ratio": 1 - keep}
        presses = {
            "knorm": ("KnormPress", ratio),
            "streaming-llm": ("StreamingLLMPress", ratio | {"n_sink": 4}),
            "snapkv": ("SnapKVPress", ratio | snap),
            "tova": ("TOVAPress", ratio),
            "keydiff": ("KeyDiffPress", ratio),
            "expected-attention": ("ExpectedAttentionPress", ratio | ea),
        }
        for name, (press, args) in presses.items():
            found.append({"name": f"{name}@{keep}", "press": press, "args": args, "keep": keep})
        for alpha in (0.0, 0.2):
            name = f"adakv-{alpha}@{keep}"
            found.append(
                {
                    "name": name,
                    "press": "SnapKVPress",
                    "args": ratio | snap,
                    "keep": keep,
                    "ada": alpha,
                }
            )
        for layer in range(LAYERS):
            pyramid = {"name": f"pyramidkv-{layer}@{keep}", "press": "PyramidKVPress", "keep": keep}
            pyramid |= {"args": ratio | snap | {"beta": 4}, "layer": layer, "layers": LAYERS}
            found.append(pyramid)
    return found


def main() -> None:
    """Ask kvpress and write the fixture."""
    draw = torch.Generator().manual_seed(2024)
    q = torch.randn(BATCH, HEADS, TOKENS, WIDTH, generator=draw) * 1.5 + 0.3
    k_pre = torch.randn(BATCH, KV_HEADS, TOKENS, WIDTH, generator=draw) * 1.5
    v = torch.randn(BATCH, KV_HEADS, TOKENS, WIDTH, generator=draw)
    k = apply_rope(k_pre, *angles(THETA, WIDTH, torch.arange(TOKENS)))
    with Kvpress(Inputs(q, k, v, THETA), jobs()) as kvpress:
        answers = kvpress.tensors
    about = {
        "kvpress": "0.5.5",
        "theta": str(THETA),
        "layers": str(LAYERS),
        "jobs": json.dumps(jobs()),
    }
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    save_file({"q_pre": q, "k": k, "v": v} | answers, TARGET, about)
    print(f"{TARGET}: {TARGET.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    main()
