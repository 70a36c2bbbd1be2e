"""Question: do we keep the tokens kvpress 0.5.5 keeps, and is choosing them as fast?

    python benchmarks/peers/make_env.py kvpress
    python benchmarks/kv_indices.py                                   # 8,192 random tokens
    python benchmarks/kv_indices.py --model zoo/tiny-llama --layer 2  # a real model's tensors

Both get the same tensors and the same number of threads and run in turns on the same machine. A
time is the best of several runs of scoring, selecting, and gathering keys and values, in processor
seconds of one thread: on a busy machine wall-clock time measures the other programs. kvpress
gets an identity for its query projection, though it projects the hidden states a second time in
real use; instead of that ours un-rotates the queries it sees, which the row "from rotated queries"
counts. For AdaKV kvpress only notes what to mask, while ours gathers ragged storage. Results go to
benchmarks/results/kv_indices*.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from capture import model_tensors, random_tensors  # noqa: E402
from kvpress_client import Inputs, Kvpress, angles  # noqa: E402
from steady_memory import keep_freed_memory  # noqa: E402

from recollect.core import attention_stats, budgets, scores  # noqa: E402
from recollect.core.rope import apply_rope, mean_rotation  # noqa: E402
from recollect.core.select import protect, ragged_indices, top_indices  # noqa: E402

WINDOW, KERNEL, SINKS, FUTURE, BETA, FLOOR = 64, 5, 4, 512, 20, 0.2
LAYERS = 8


class Case:
    """One layer's tensors as our core sees them: rotated queries and keys."""

    def __init__(self, inputs: Inputs, keep: float) -> None:
        self.inputs, self.keep = inputs, keep
        self.k, self.v = inputs.k, inputs.v
        self.heads, self.total, self.width = self.k.shape[1:]
        self.scale = 1 / math.sqrt(self.width)
        self.cos, self.sin = angles(inputs.theta, self.width, torch.arange(self.total))
        self.q = apply_rope(inputs.q_pre, self.cos, self.sin)


def streaming(case: Case) -> torch.Tensor:
    recent = budgets.count_kept(case.keep, case.total) - SINKS
    return protect(torch.zeros(case.k.shape[:3]), sinks=SINKS, recent=recent)


def snapkv(case: Case) -> torch.Tensor:
    votes = attention_stats.column_mass(case.q[:, :, -WINDOW:], case.k, case.scale) / WINDOW
    return scores.window_votes(votes, case.heads, WINDOW, kernel=KERNEL)


def tova(case: Case) -> torch.Tensor:
    row = attention_stats.last_row(case.q, case.k, case.scale)
    return protect(scores.tova(row, case.heads), recent=1)


def expected(case: Case, rotated: bool = False) -> torch.Tensor:
    future = torch.arange(case.total, case.total + FUTURE)
    rotation = mean_rotation(*angles(case.inputs.theta, case.width, future), case.width)
    if rotated:
        sums = scores.query_sums(case.q, SINKS, angles=(case.cos, case.sin))
    else:
        sums = scores.query_sums(case.inputs.q_pre, SINKS)
    moments = scores.query_moments(sums)
    return scores.expected_attention(*moments, case.k, case.v, rotation, n_sink=SINKS)


@dataclass(frozen=True)
class Method:
    """A recipe and its press; `layer` for PyramidKV, `flat` for AdaKV."""

    name: str
    score: Callable[[Case], torch.Tensor]
    press: str
    args: dict[str, Any]
    flat: bool = False
    layer: int | None = None

    def job(self, keep: float) -> dict[str, Any]:
        """What kvpress_worker.py is asked."""
        job = {"name": self.name, "press": self.press}
        job["args"] = self.args | {"compression_ratio": 1 - keep}
        if self.flat:
            job["ada"] = FLOOR
        if self.layer is not None:
            job |= {"layer": self.layer, "layers": LAYERS}
        return job

    def tokens(self, case: Case) -> int:
        """Tokens per head, by kvpress's rule where it differs."""
        if self.layer is None:
            return budgets.count_kept(case.keep, case.total)
        rule = budgets.pyramid_layers_kvpress
        return rule(case.keep, LAYERS, case.total, WINDOW, BETA)[self.layer]

    def select(self, case: Case, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token indices (N,) and which head (N,) each belongs to."""
        n = self.tokens(case)
        if self.flat:
            index, lengths = ragged_indices(found, budgets.flat_head_counts(found, n, FLOOR))
            return index, torch.arange(len(lengths)).repeat_interleave(lengths)
        index = top_indices(found, n)
        heads = torch.arange(index.shape[0] * index.shape[1]).repeat_interleave(n)
        return index.flatten(), heads

    def compress(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the kept tokens (N, D), as a cache would store them."""
        index, heads = self.select(case, self.score(case))
        rows = heads * case.total + index
        return tuple(x.flatten(0, 2).index_select(0, rows) for x in (case.k, case.v))


SNAP = {"window_size": WINDOW, "kernel_size": KERNEL}
EXPECTED = {"n_sink": SINKS, "n_future_positions": FUTURE}
METHODS = [
    Method("knorm", lambda case: scores.key_norm(case.k), "KnormPress", {}),
    Method("keydiff", lambda case: scores.keydiff(case.k), "KeyDiffPress", {}),
    Method("streaming-llm", streaming, "StreamingLLMPress", {"n_sink": SINKS}),
    Method("tova", tova, "TOVAPress", {}),
    Method("snapkv", snapkv, "SnapKVPress", SNAP),
    Method("adakv", snapkv, "SnapKVPress", SNAP, flat=True),
    *(
        Method(
            f"pyramidkv, layer {i} of {LAYERS}",
            snapkv,
            "PyramidKVPress",
            SNAP | {"beta": BETA},
            layer=i,
        )
        for i in (0, LAYERS - 1)
    ),
    Method("expected-attention", expected, "ExpectedAttentionPress", EXPECTED),
    Method(
        "  from rotated queries",
        lambda case: expected(case, rotated=True),
        "ExpectedAttentionPress",
        EXPECTED,
    ),
]


def untied(differing: torch.Tensor, found: torch.Tensor) -> int:
    """How many tokens two kept sets differ by, not counting heads that differ in equal scores."""
    low = found.masked_fill(~differing, torch.inf).amin(-1)
    high = found.masked_fill(~differing, -torch.inf).amax(-1)
    return int(differing.sum(-1)[high - low > 1e-6 * high.abs()].sum())


def compare(method: Method, case: Case, theirs: Kvpress, repeat: int) -> dict[str, Any]:
    """One row of the table."""
    found = method.score(case)
    index, heads = method.select(case, found)
    ours = torch.zeros(found.shape, dtype=torch.bool)
    ours.view(-1, case.total)[heads, index] = True
    kept = theirs.tensors[f"{method.name}/kept"]
    their_scores = theirs.tensors[f"{method.name}/score"]
    ranked = (
        (found.isfinite() & (their_scores < their_scores.max()))
        if method.name != "streaming-llm"
        else None
    )
    delta = None if ranked is None else float((found - their_scores)[ranked].abs().max())
    mine, peers = [], []
    for _ in range(repeat):
        start = time.process_time()
        method.compress(case)
        mine.append(time.process_time() - start)
        peers.append(theirs.seconds(method.name))
    return {
        "method": method.name,
        "keep": case.keep,
        "kept": int(ours.sum()),
        "differing_beyond_ties": untied(ours ^ kept, found),
        "agreement": int((ours & kept).sum()) / max(int(kept.sum()), int(ours.sum())),
        "max_score_difference": delta,
        "largest_score": None if ranked is None else float(their_scores[ranked].abs().max()),
        "ours_ms": 1e3 * min(mine),
        "kvpress_ms": 1e3 * min(peers),
    }


def variants() -> list[dict[str, Any]]:
    """Where we differ on purpose: both rules side by side."""
    rows = []
    for length, keep in ((100, 0.2), (1000, 0.1)):
        theirs = max(1, int(length * (1 - (1 - keep))))
        rows.append(
            {
                "rule": f"tokens for keep={keep} of {length}",
                "ours": budgets.count_kept(keep, length),
                "kvpress": theirs,
            }
        )
    for keep in (0.5, 0.25):
        mean = budgets.count_kept(keep, 4096)
        ours = budgets.pyramid_layers(mean, LAYERS, 4096, WINDOW, BETA)
        theirs = budgets.pyramid_layers_kvpress(keep, LAYERS, 4096, WINDOW, BETA)
        rows.append({"rule": f"pyramid, keep={keep} of 4096", "ours": ours, "kvpress": theirs})
        rows.append({"rule": "  its sum", "ours": sum(ours), "kvpress": sum(theirs)})
    return rows


def show(rows: list[dict[str, Any]], differences: list[dict[str, Any]], title: str) -> None:
    """Print both tables."""
    table = Table(title=title)
    for heading in (
        "recipe",
        "keep",
        "same tokens",
        "differ beyond ties",
        "max |Δ score|",
        "largest",
        "ours ms",
        "kvpress ms",
        "speed",
    ):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for row in rows:
        delta, largest = row["max_score_difference"], row["largest_score"]
        table.add_row(
            row["method"],
            f"{row['keep']:g}",
            f"{row['agreement']:.6f}",
            str(row["differing_beyond_ties"]),
            "–" if delta is None else f"{delta:.1e}",
            "–" if largest is None else f"{largest:.1e}",
            f"{row['ours_ms']:.1f}",
            f"{row['kvpress_ms']:.1f}",
            f"{row['kvpress_ms'] / row['ours_ms']:.1f}x",
        )
    other = Table(title="different on purpose (see specs/kv-eviction.md)")
    for heading in ("rule", "ours", "kvpress"):
        other.add_column(heading)
    for row in differences:
        other.add_row(*(str(cell) for cell in row.values()))
    console = Console(width=120)
    console.print(table, other)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32, help="query heads of random tensors")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model", help="take the tensors from this model instead")
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    if given.model:
        inputs, what = model_tensors(given.model, given.layer, given.tokens), Path(given.model).name
    else:
        shape = (given.tokens, given.heads, given.kv_heads, given.width)
        inputs, what = random_tensors(*shape), "random"
    shape = "x".join(map(str, inputs.k.shape))
    rows = []
    with torch.inference_mode():
        for keep in given.keep:
            case = Case(inputs, keep)
            with Kvpress(inputs, [m.job(keep) for m in METHODS], given.threads) as theirs:
                rows += [compare(m, case, theirs, given.repeat) for m in METHODS]
    show(rows, variants(), f"kvpress 0.5.5 and recollect on {what} tensors {shape}")
    target = HERE / "results" / f"kv_indices{'' if what == 'random' else '_' + what}.json"
    target.parent.mkdir(exist_ok=True)
    about = {
        "tensors": what,
        "keys": shape,
        "queries": "x".join(map(str, inputs.q_pre.shape)),
        "kvpress": "0.5.5",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "times": f"processor milliseconds, best of {given.repeat}",
        "command": " ".join(["python benchmarks/kv_indices.py", *sys.argv[1:]]),
    }
    target.write_text(
        json.dumps({"about": about, "rows": rows, "variants": variants()}, indent=1) + "\n"
    )
    print(target)


if __name__ == "__main__":
    main()
