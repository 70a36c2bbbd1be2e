"""Question: how soon comes the first token when the prompt's prefix lies in a store?

    python benchmarks/store_prefix.py
    python benchmarks/store_prefix.py --tokens 2048 --repeat 5

Stock `generate` of one new token on the zoo's models (the standard library's source as prompt) and
on a random 4-layer Llama of width 512: without a store, with every chunk on the host tier, with
every chunk on disk (files in the page cache), and with a `snapkv + kivi` state that was remembered.
Every prompt is the stored one, all but its last few tokens found. Wall and processor milliseconds
are medians; ratios are against computing in the same run. Text is compared token for token.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import shutil
import statistics
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import recollect
from recollect.store import Store
from recollect.store.admission import Admission, AdmissionPolicy

HERE = Path(__file__).resolve().parent


def random_model() -> tuple[LlamaForCausalLM, None]:
    """4 layers, width 512."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval(), None


def prompt(tokenizer: Any, tokens: int) -> torch.Tensor:
    """(1, tokens) of source code, or of random tokens where there is no tokenizer."""
    if tokenizer is None:
        return torch.randint(2, 2000, (1, tokens), generator=torch.Generator().manual_seed(0))
    source = inspect.getsource(argparse) + inspect.getsource(textwrap) + inspect.getsource(shutil)
    ids = tokenizer(source, return_tensors="pt", verbose=False).input_ids
    return ids[:, :tokens]


def timed(model: Any, ids: torch.Tensor, repeat: int) -> tuple[float, float]:
    """Median wall and processor milliseconds to the first token."""
    wall, cpu = [], []
    for _ in range(repeat):
        began, spent = time.perf_counter(), time.process_time()
        model.generate(ids, max_new_tokens=1, do_sample=False)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return 1e3 * statistics.median(wall), 1e3 * statistics.median(cpu)


def text(model: Any, ids: torch.Tensor) -> list[int]:
    """Sixteen greedy tokens."""
    return model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()


def always() -> Admission:
    """Loads whether it pays or not: whether it does is the question."""
    return Admission(AdmissionPolicy(mode="always"))


def measure(name: str, model: Any, ids: torch.Tensor, repeat: int) -> list[dict[str, Any]]:
    """Rows of the table for one model."""
    expected = text(model, ids)
    wall, cpu = timed(model, ids, repeat)
    rows = [{"model": name, "tokens": ids.shape[1], "how": "computed", "wall_ms": wall}]
    rows[0] |= {"cpu_ms": cpu, "matched": 0, "bytes": 0, "same_text": True}
    folder = tempfile.mkdtemp()
    places: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("exact, host", "full", {"host": "1GiB"}, {}),
        ("exact, disk", "full", {"path": folder, "host": None, "disk": "1GiB"}, {}),
        ("snapkv + kivi, host", "snapkv + kivi", {"host": "1GiB"}, {"keep": 0.25}),
    ]
    for how, spec, place, arguments in places:
        with (
            Store(**place, admission=always()) as store,
            recollect.prefix_cache(model, store, spec, **arguments) as prefixes,
        ):
            # A state is only of use where a token is left to compute behind it.
            prefixes.remember(ids if spec == "full" else ids[:, :-1])
            same = text(model, ids) == expected
            before = prefixes.report.as_dict()
            wall, cpu = timed(model, ids, repeat)
            after = prefixes.report.as_dict()
        done = {x: (after[x] - before[x]) // repeat for x in ("matched", "loaded")}
        row = {"model": name, "tokens": ids.shape[1], "how": how, "wall_ms": wall, "cpu_ms": cpu}
        rows.append(row | {"matched": done["matched"], "bytes": done["loaded"], "same_text": same})
    shutil.rmtree(folder)
    for row in rows:
        row["ratio"] = rows[0]["wall_ms"] / row["wall_ms"]
        row["cpu_ratio"] = rows[0]["cpu_ms"] / row["cpu_ms"]
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    models = [(f"zoo/{name}", recollect.zoo.load(name)) for name in recollect.zoo.names()]
    rows = []
    for name, (model, tokenizer) in [*models, ("random, 4 x 512", random_model())]:
        rows += measure(name, model, prompt(tokenizer, given.tokens), given.repeat)
    table = Table(title=f"first token, {torch.get_num_threads()} threads")
    for heading in ("model", "prompt", "prefix", "matched", "MB", "ms", "cpu ms", "x", "text"):
        table.add_column(heading, justify="left" if heading in ("model", "prefix") else "right")
    for row in rows:
        table.add_row(
            row["model"], f"{row['tokens']:,}", row["how"], f"{row['matched']:,}",
            f"{row['bytes'] / 1e6:.1f}", f"{row['wall_ms']:.0f}", f"{row['cpu_ms']:.0f}",
            f"{row['ratio']:.1f}", "same" if row["same_text"] else "differs",
        )  # fmt: skip
    Console(width=110).print(table)
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    target = HERE / "results" / "store_prefix.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
