"""Question: what does a checkpoint of Llama-3.2-1B's shape cost in memory, by recipe?

    python benchmarks/kv_checkpoint.py --prompt 2048
    python benchmarks/kv_checkpoint.py --layers 2 --prompt 256 --json /tmp/small.json

A random Llama of that shape (16 layers, 2,048 wide, 32 query and 8 KV heads of 64, a vocabulary of
128,256) is saved as sharded bfloat16 safetensors with the zoo's tokenizer and a chat template. Then
`recollect generate --model FOLDER --chat` writes a few tokens with every recipe, a process each, so
that peak memory is the recipe's own. The text is noise: weights are random. What counts is that a
user's checkpoint goes through, and the bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import recollect
from recollect.zoo import corpus

RECIPES = [
    ("full", "1.0"),
    ("snapkv", "0.25"),
    ("kivi(bits=4)", "1.0"),
    ("snapkv + kivi(bits=4)", "0.25"),
    ("adakv", "0.25"),
]
CHAT = (
    "{% for message in messages %}{{ '\n# ' + message['role'] + '\n' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n# assistant\n' }}{% endif %}"
)
RUN = "import sys; from recollect.cli import main; main(sys.argv[1:])"
MIB = 2**20


def save_checkpoint(folder: Path, layers: int) -> int:
    """Write the checkpoint; returns the bytes of its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.fill_(1.0)
        else:
            weight.data.normal_(std=0.02)
        assert weight.dtype == torch.bfloat16, name
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="500MB")
    tokenizer = AutoTokenizer.from_pretrained(recollect.zoo.path("tiny-llama"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run(folder: Path, recipe: str, keep: str, prompt: Path, tokens: int, threads: int) -> dict:
    """Generate in a process of its own; its report, seconds and peak resident bytes."""
    out = folder / "out.json"
    command = [
        sys.executable, "-c", RUN, "generate", "--model", str(folder), "--chat",
        "--recipe", recipe, "--keep", keep, "--file", str(prompt), "-n", str(tokens),
        "--threads", str(threads), "--json",
    ]  # fmt: skip
    started = time.perf_counter()
    with out.open("w") as file:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"recollect generate failed: {' '.join(command)}")
    totals = json.loads(out.read_text())["report"]
    return {
        "recipe": recipe,
        "keep": float(keep),
        "seconds": time.perf_counter() - started,
        "peak_bytes": usage.ru_maxrss * 1024,
        "cache_bytes": totals["nbytes"],
        "dense_bytes": totals["dense_nbytes"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of context, about")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    default = Path(__file__).resolve().parent / "results" / "kv_checkpoint.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = save_checkpoint(folder, args.layers)
        text = "".join(corpus.documents("held-out"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.encode(text[: 8 * args.prompt], add_special_tokens=False)[: args.prompt]
        prompt = folder / "prompt.txt"
        prompt.write_text(tokenizer.decode(ids))
        shards = len(list(folder.glob("model-*.safetensors")))
        rows = [
            run(folder, recipe, keep, prompt, args.tokens, args.threads) for recipe, keep in RECIPES
        ]
    table = Table(title=f"{weights / MIB:,.0f} MiB of weights in {shards} shards")
    for column in ("recipe", "keep", "cache MiB", "of dense", "peak MiB", "peak - weights", "s"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in rows:
        table.add_row(
            row["recipe"],
            str(row["keep"]),
            f"{row['cache_bytes'] / MIB:.1f}",
            f"{row['cache_bytes'] / row['dense_bytes']:.1%}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{(row['peak_bytes'] - weights) / MIB:,.0f}",
            f"{row['seconds']:.0f}",
        )
    Console().print(table)
    given = {k: v for k, v in vars(args).items() if k != "json"}
    report = {"weights_bytes": weights, "shards": shards, **given, "rows": rows}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
