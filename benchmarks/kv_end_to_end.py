"""Question: how fast does a whole model decode at 16k tokens of context, and in how many bytes?

    python benchmarks/peers/make_env.py quantized-cache
    python benchmarks/kv_end_to_end.py
    python benchmarks/kv_end_to_end.py --prompt 4096 --steps 8 --json /tmp/short.json

A random Llama (grouped-query attention, float32) decodes greedily after one long prompt, with
transformers' DynamicCache and QuantizedCache (quanto and HQQ, a process each) and with
our recipes, all in one run on the same machine. A token's cost is the median of the steps, in wall
time and in processor time (which other programs disturb less). Ratios are against QuantizedCache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import recollect

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venvs" / "quantized-cache" / "bin" / "python"
OURS = [
    ("full", {}),
    ("kivi", {"bits": 8}),
    ("kivi", {"bits": 4}),
    ("kivi", {"bits": 2}),
    ("snapkv", {"keep": 0.25}),
    ("snapkv + kivi", {"keep": 0.25, "bits": 4}),
    ("adakv", {"keep": 0.25}),
]
FEW = [("full", {}), ("kivi", {"bits": 4}), ("snapkv + kivi", {"keep": 0.25, "bits": 4})]
BASELINE = "QuantizedCache quanto 4 bit"
THEIRS = [("dynamic", 0), ("quanto", 4), ("quanto", 2), ("hqq", 4)]


def build(folder: Path, layers: int) -> LlamaForCausalLM:
    """A random Llama, saved where the peers' processes can load it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=65536,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def ours(model: LlamaForCausalLM, spec: str, args: dict[str, Any], prompt: int, steps: int) -> dict:
    """Decode with one of our recipes."""
    ids = torch.randint(2, 500, (1, prompt), generator=torch.Generator().manual_seed(0))
    with recollect.kv_cache(model, spec, **args) as cache:
        token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        wall, cpu = [], []
        for _ in range(steps):
            started, spent = time.perf_counter(), time.process_time()
            logits = model(input_ids=token, past_key_values=cache).logits
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - spent)
            token = logits.argmax(-1)
        return {"wall": wall, "cpu": cpu, "bytes": cache.nbytes}


def theirs(folder: Path, kind: str, bits: int, prompt: int, steps: int, threads: int) -> dict:
    """Decode with one of transformers' caches, in the environment that has its backend."""
    python = sys.executable if kind == "dynamic" else str(PEER)
    command = [
        python, str(HERE / "peers" / "decode_worker.py"), "--model", str(folder),
        "--prompt", str(prompt), "--steps", str(steps), "--cache", kind, "--bits", str(bits or 4),
        "--threads", str(threads),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, default=16384, help="tokens of context")
    parser.add_argument("--steps", type=int, default=16, help="tokens to decode")
    parser.add_argument("--few", action="store_true", help="five caches instead of eleven")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "kv_end_to_end.json")
    args = parser.parse_args()
    if not PEER.exists():
        parser.error("first run: python benchmarks/peers/make_env.py quantized-cache")
    torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        model = build(Path(name), args.layers)
        for kind, bits in THEIRS:
            label = "DynamicCache" if kind == "dynamic" else f"QuantizedCache {kind} {bits} bit"
            if args.few and label not in ("DynamicCache", BASELINE):
                continue
            result = theirs(Path(name), kind, bits, args.prompt, args.steps, args.threads)
            rows.append({"who": "transformers", "cache": label, **result})
        for spec, arguments in OURS:
            given = ", ".join(f"{n}={v}" for n, v in arguments.items())
            if args.few and (spec, arguments) not in FEW:
                continue
            result = ours(model, spec, arguments, args.prompt, args.steps)
            rows.append({"who": "recollect", "cache": f"{spec}({given})", **result})
    for row in rows:
        for clock in ("wall", "cpu"):
            row[f"{clock}_ms"] = statistics.median(row.pop(clock)) * 1e3
    slowest = next(row for row in rows if row["cache"] == BASELINE)
    dense = rows[0]
    table = Table(title=f"decoding at {args.prompt} tokens of context")
    for column in ("cache", "tokens/s", "x quanto 4 bit (wall)", "(cpu)", "bytes / DynamicCache"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for row in rows:
        row["speed_up_wall"] = slowest["wall_ms"] / row["wall_ms"]
        row["speed_up_cpu"] = slowest["cpu_ms"] / row["cpu_ms"]
        row["bytes_ratio"] = row["bytes"] / dense["bytes"]
        table.add_row(
            f"{row['who']} {row['cache']}",
            f"{1e3 / row['wall_ms']:.1f}",
            f"{row['speed_up_wall']:.1f}",
            f"{row['speed_up_cpu']:.1f}",
            f"{row['bytes_ratio']:.1%}",
        )
    Console(width=120).print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    facts = {"prompt": args.prompt, "steps": args.steps, "layers": args.layers}
    facts |= {"threads": args.threads, "machine": platform.machine(), "versions": versions}
    args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
