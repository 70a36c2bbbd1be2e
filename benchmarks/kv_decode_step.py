"""How long does attention take in one decode step over a long cache, by how the cache is held?

Ours (dense, ragged, packed integers) against what transformers runs (its own function, with and
without the mask that a padded batch brings) and what torch offers. Repetitions are interleaved, so
that other work on the machine slows all alike; read the ratios. Reproduce with::

    python benchmarks/kv_decode_step.py --tokens 32768 --json benchmarks/results/kv_decode_step.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numba
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from recollect.core import kernels
from recollect.core.codecs import PackedKV

HOST, HOST_MASKED = "transformers", "transformers, padded batch"
GQA, MATMUL = "torch SDPA, enable_gqa", "torch matmul, grouped"
GOALS = [  # ours, peer, at least this many times faster
    ("ours dense", HOST_MASKED, 3.0),
    ("ours dense", HOST, 3.0),
    ("ours packed 4 bit", HOST_MASKED, 8.0),
    ("ours packed 4 bit", HOST, 8.0),
    ("ours packed 4 bit", GQA, 4.0),
]


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        print(json.dumps(step_memory(args)))
        return
    rows = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            rows += [{"dtype": str(dtype)[6:], **row} for row in timings(args, dtype)]
    ratios = [ratio for dtype in ("float32", "bfloat16") for ratio in compare(rows, dtype)]
    memory = measured_memory(args)
    show(args, rows, ratios, memory)
    report = {
        "question": __doc__.splitlines()[0] if __doc__ else "",
        "command": " ".join(["python", *sys.argv]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numba": numba.__version__,
        },
        "shape": {name: getattr(args, name) for name in ("tokens", "heads", "kv_heads", "width")},
        "threads": args.threads,
        "load_average": resource_load(),
        "timings": rows,
        "ratios": ratios,
        "memory": memory,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "results" / "kv_decode_step.json"
    )
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# -- time -------------------------------------------------------------------------------------


def timings(args: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, object]]:
    """Median time of every way to attend, and its error against float32 attention."""
    cases, exact = ways(args, dtype)
    results = {name: call().float() for name, call in cases.items()}  # warms up, too
    wall: dict[str, list[float]] = {name: [] for name in cases}
    processor: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.repeats):
        for name, call in cases.items():
            start, start_processor = time.perf_counter(), time.process_time()
            call()
            wall[name].append((time.perf_counter() - start) * 1e3)
            processor[name].append((time.process_time() - start_processor) * 1e3)
    return [
        {
            "name": name,
            "median_ms": statistics.median(wall[name]),
            "min_ms": min(wall[name]),
            "cpu_median_ms": statistics.median(processor[name]),
            "relative_error": float((results[name] - exact).norm() / exact.norm()),
        }
        for name in cases
    ]


def ways(
    args: argparse.Namespace, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], torch.Tensor]], torch.Tensor]:
    """Ways to attend, each a call that gives (1, H, 1, D), and the exact result."""
    q, k, v = tensors(args, dtype)
    tokens, heads, width = args.tokens, args.kv_heads, args.width
    scale, groups = width**-0.5, args.heads // args.kv_heads
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    mask = torch.ones(1, 1, 1, tokens, dtype=torch.bool)
    mask[..., :1] = False  # one padded token: transformers then passes a mask and expands the heads
    starts, lengths = torch.arange(heads) * tokens, torch.full((heads,), tokens)
    rows = k.view(-1, width), v.view(-1, width)

    def host(mask: torch.Tensor | None) -> torch.Tensor:
        out, _ = sdpa_attention_forward(module, q, k, v, mask, scaling=scale)
        return out.transpose(1, 2)

    def matmul() -> torch.Tensor:
        grouped = q.view(1, heads, groups, width) * scale
        return ((grouped @ k.transpose(-1, -2)).softmax(-1) @ v).view_as(q)

    cases: dict[str, Callable[[], torch.Tensor]] = {
        HOST: lambda: host(None),
        HOST_MASKED: lambda: host(mask),
        GQA: lambda: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scale, enable_gqa=True
        ),
        MATMUL: matmul,
        "ours dense": lambda: kernels.dense_attention(q, k, v, scale=scale)[0],
        "ours ragged": lambda: kernels.ragged_attention(q, *rows, starts, lengths, scale=scale)[0],
    }
    for bits in (8, 4, 2):
        packed = PackedKV.encode_dense(k, v, bits, group=32)
        cases[f"ours packed {bits} bit"] = lambda packed=packed: kernels.packed_attention(
            q, packed, scale=scale
        )[0]
    exact = kernels.dense_attention(
        q.float(), k.float(), v.float(), scale=scale, implementation="reference"
    )[0]
    return cases, exact


def tensors(
    args: argparse.Namespace, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = torch.randn(1, args.heads, 1, args.width).to(dtype)
    k, v = (torch.randn(1, args.kv_heads, args.tokens, args.width).to(dtype) for _ in range(2))
    return q, k, v


def compare(rows: list[dict[str, object]], dtype: str) -> list[dict[str, object]]:
    """How many times faster ours is, by wall-clock medians and by processor time."""
    of = {row["name"]: row for row in rows if row["dtype"] == dtype}

    def ratio(ours: str, peer: str, measure: str) -> float:
        return float(of[peer][measure]) / float(of[ours][measure])  # type: ignore[arg-type]

    return [
        {
            "dtype": dtype,
            "ours": ours,
            "peer": peer,
            "goal": goal,
            "ratio": ratio(ours, peer, "median_ms"),
            "ratio_of_minima": ratio(ours, peer, "min_ms"),
            "cpu_ratio": ratio(ours, peer, "cpu_median_ms"),
        }
        for ours, peer, goal in GOALS
    ]


# -- memory -----------------------------------------------------------------------------------


def measured_memory(args: argparse.Namespace) -> dict[str, int] | None:
    """Memory of one packed step, in a process of its own; None where /proc cannot tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--measure-memory", "--threads", str(args.threads)]
    for name in ("tokens", "heads", "kv_heads", "width"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def step_memory(args: argparse.Namespace) -> dict[str, int]:
    """Bytes of the packed cache, and by how much one step raises the process's peak."""
    q, k, v = tensors(args, torch.float32)
    packed = PackedKV.encode_dense(k, v, 4, group=32)
    dense = k.nbytes + v.nbytes
    del k, v
    kernels.packed_attention(q, packed, scale=1.0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    kernels.packed_attention(q, packed, scale=1.0)
    return {
        "dense_bytes": dense,
        "packed_bytes": packed.nbytes,
        "step_bytes": max(0, status("VmHWM") - before),
        "reference_tile_bytes": 1024 * args.kv_heads * args.width * 2 * 4,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


# -- report -----------------------------------------------------------------------------------


def show(
    args: argparse.Namespace,
    rows: list[dict[str, object]],
    ratios: list[dict[str, object]],
    memory: dict[str, int] | None,
) -> None:
    console = Console()
    table = Table(
        title=f"one decode step, {args.tokens} tokens, {args.heads} query / {args.kv_heads} KV "
        f"heads, width {args.width}, {args.threads} threads"
    )
    for column in ("dtype", "way", "median ms", "min ms", "CPU ms", "error"):
        table.add_column(column, justify="left" if column in ("dtype", "way") else "right")
    for row in rows:
        table.add_row(
            str(row["dtype"]),
            str(row["name"]),
            *(f"{row[name]:.1f}" for name in ("median_ms", "min_ms", "cpu_median_ms")),
            f"{row['relative_error']:.1e}",
        )
    console.print(table)
    table = Table(title="times faster (wall-clock medians; minima; processor time)")
    for column in ("dtype", "ours", "than", "goal", "median", "min", "CPU"):
        table.add_column(column)
    for row in ratios:
        table.add_row(
            str(row["dtype"]),
            str(row["ours"]),
            str(row["peer"]),
            f"{row['goal']:.0f}x",
            *(f"{row[name]:.1f}x" for name in ("ratio", "ratio_of_minima", "cpu_ratio")),
        )
    console.print(table)
    if memory:
        console.print(
            f"packed cache {memory['packed_bytes'] / 2**20:.1f} MiB (dense "
            f"{memory['dense_bytes'] / 2**20:.1f} MiB); a step adds at most "
            f"{memory['step_bytes'] / 2**20:.2f} MiB"
        )


def resource_load() -> list[float]:
    with open("/proc/loadavg") as file:
        return [float(x) for x in file.read().split()[:3]]


if __name__ == "__main__":
    main()
