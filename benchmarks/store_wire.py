"""Question: how small do chunks of 256 tokens get on the wire, at what cost, and how fast?

    python benchmarks/store_wire.py                         # both zoo models, real text
    python benchmarks/store_wire.py --fuzz 1000000          # and a million hostile frames

For each frame codec, and for the released CacheGen form, over held-out source of Python's standard
library: size of whole frames against fp16, what side information takes, and the KL divergence of
the model's next-token distributions over the tokens that follow, attending to the decoded chunk
instead of the exact one. Speed is megabytes of fp16 input per second of random keys and values in
the geometry of an 8-billion-parameter model: on two threads by the wall clock, and per second of
processor time, which a busy machine does not falsify; the best of several runs. For the overlap of
the layer stream, a layer's computation is replaced by matrix products of about the time that
decoding takes; it needs two idle cores. Results go to benchmarks/results/store_wire.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache, PreTrainedModel

from recollect import zoo
from recollect.core.codecs import cachegen, cachegen_released, entropy
from recollect.core.codecs.distributions import prices
from recollect.store.frames import FrameHeader, decode_layer, encode_layers, nbytes, unpack
from recollect.store.streaming import LayerStream
from recollect.zoo import corpus

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "store"))

CODECS = ("dense", "int8", "int4", "int2", *(f"cachegen-{level}" for level in range(4)))
CHUNK, FOLLOWING = 256, 128  # tokens
LAYERS, HEADS, WIDTH = 4, 8, 128  # of the geometry for speed: four of 32 layers

KV = tuple[torch.Tensor, torch.Tensor]


# -- quality and size -------------------------------------------------------------------------


def passages(tokenizer: Any, count: int) -> list[torch.Tensor]:
    """Token ids (1, CHUNK + FOLLOWING) from as many held-out files."""
    found = []
    for text in corpus.documents("held-out"):
        ids = tokenizer(text[:20_000], return_tensors="pt")["input_ids"]
        if ids.shape[1] >= CHUNK + FOLLOWING:
            found.append(ids[:, : CHUNK + FOLLOWING])
        if len(found) == count:
            break
    return found


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> list[KV]:
    """Keys and values (K, CHUNK, D) of every layer."""
    cache = DynamicCache()
    model(ids[:, :CHUNK], past_key_values=cache)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def following(model: PreTrainedModel, ids: torch.Tensor, layers: list[KV]) -> torch.Tensor:
    """Log-probabilities (FOLLOWING, V) after a chunk with these keys and values."""
    cache = DynamicCache()
    for index, (k, v) in enumerate(layers):
        cache.update(k[None].float(), v[None].float(), index)
    return model(ids[:, CHUNK:], past_key_values=cache).logits[0].log_softmax(-1)


def divergence(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL divergence in nats."""
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def released(layers: list[KV]) -> tuple[list[KV], float]:
    """Layers through the released quantizer, and bytes of its chunk (a lower bound)."""
    out, bits = [], 0.0
    for index, pair in enumerate(layers):
        decoded = []
        for x, bins in zip(pair, cachegen_released.bins_of(index), strict=True):
            rows = x.transpose(0, 1).reshape(x.shape[1], -1)
            symbols, largest = cachegen_released.quantize(rows, bins)
            bits += cachegen_released.chunk_bits(symbols, bins)
            back = cachegen_released.dequantize(symbols, largest, bins)
            decoded.append(back.view(x.shape[1], x.shape[0], -1).transpose(0, 1))
        out.append((decoded[0], decoded[1]))
    return out, bits / 8


def side_bits(layers: list[KV], level: int) -> tuple[float, float]:
    """Bits per element of table choices, and of all that is no entropy-coded payload."""
    tables = side = elements = 0
    for index, pair in enumerate(layers):
        for x in pair:
            data = cachegen.encode(x, cachegen.bin_width(level, index, len(layers)))
            channels, escapes = cachegen.PREFIX.unpack(data[: cachegen.PREFIX.size])[5:7]
            flags = np.frombuffer(data, np.uint8, channels, cachegen.PREFIX.size + 2 * channels)
            anchors = int((flags >= cachegen.DELTA).sum())
            tables += channels + anchors
            side += cachegen.PREFIX.size + 3 * channels + anchors + 4 * escapes
            elements += x.numel()
    return 8 * tables / elements, 8 * side / elements


def quality(name: str, count: int) -> list[dict[str, Any]]:
    """Rows of one model: size against fp16 and divergence, for every codec."""
    model, tokenizer = zoo.load(name)
    sums: dict[str, list[tuple[float, float]]] = {codec: [] for codec in (*CODECS, "released")}
    side = []
    for ids in track(passages(tokenizer, count), description=name, transient=True):
        layers = [(k.half(), v.half()) for k, v in prefill(model, ids)]
        exact = following(model, ids, layers)
        fp16 = sum(2 * x.numel() for pair in layers for x in pair)
        for codec in CODECS:
            frame = encode_layers(layers, FrameHeader(name, CHUNK), codec)
            read = unpack(b"".join(frame))
            decoded = [decode_layer(read, layer) for layer in range(len(layers))]
            cost = divergence(exact, following(model, ids, decoded))
            sums[codec].append((fp16 / nbytes(frame), cost))
        decoded, size = released(layers)
        cost = divergence(exact, following(model, ids, decoded))
        sums["released"].append((fp16 / size, cost))
        side.append(side_bits(layers, 1))
    tables, rest = np.mean(side, axis=0)
    return [
        {
            "model": name,
            "codec": codec,
            "smaller_than_fp16": float(np.mean([ratio for ratio, _ in found])),
            "kl_nats": float(np.mean([cost for _, cost in found])),
            **(
                {"table_bits_per_element": tables, "side_bits_per_element": rest}
                if codec == "cachegen-1"
                else {}
            ),
        }
        for codec, found in sums.items()
    ]


# -- speed ------------------------------------------------------------------------------------


def random_layers() -> list[KV]:
    """One chunk in fp16 whose channels differ in spread and offset as those of models do."""
    draw = torch.Generator().manual_seed(0)

    def one() -> torch.Tensor:
        spread = torch.rand(HEADS, 1, WIDTH, generator=draw) * 2 + 0.2
        offset = torch.randn(HEADS, 1, WIDTH, generator=draw)
        return (torch.randn(HEADS, CHUNK, WIDTH, generator=draw) * spread + offset).half()

    return [(one(), one()) for _ in range(LAYERS)]


def best(work: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Shortest wall and processor seconds."""
    wall, cpu = [], []
    for _ in range(repeat):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return min(wall), min(cpu)


def speed(codec: str, repeat: int) -> dict[str, Any]:
    """Megabytes of fp16 per second, encoding to a frame and decoding all layers of it."""
    layers, header = random_layers(), FrameHeader("m", CHUNK)
    megabytes = sum(2 * x.numel() for pair in layers for x in pair) / 1e6
    data = b"".join(encode_layers(layers, header, codec, threads=2))

    class Held:
        data: memoryview

        def release(self) -> None: ...

    held = Held()
    held.data = memoryview(data)

    def decode() -> None:
        with LayerStream([held], ahead=LAYERS, threads=2) as stream:
            for _ in stream:
                pass

    encoded = best(lambda: encode_layers(layers, header, codec, threads=2), repeat)
    decoded = best(decode, repeat)
    return {
        "codec": codec,
        **{
            f"{what}_mb_per_s_{clock}": megabytes / seconds
            for what, pair in (("encode", encoded), ("decode", decoded))
            for clock, seconds in zip(("wall", "processor"), pair, strict=True)
        },
    }


def coder(repeat: int) -> dict[str, Any]:
    """The entropy coder alone, one thread: symbols per second and distance from the entropy."""
    draw = np.random.default_rng(0).normal(128, 3, 1024 * 256)
    symbols = np.rint(draw).astype(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    share = counts[counts > 0] / counts.sum()
    ideal = -(share * np.log2(share)).sum() * len(symbols) / 8
    tables = entropy.Tables.from_counts(counts[None])
    rows = np.full(1024, 256), np.zeros(1024, int)
    data = entropy.encode(symbols, tables, *rows)
    fixed = prices() @ counts
    encoded = best(lambda: entropy.encode(symbols, tables, *rows), repeat)[1]
    decoded = best(lambda: entropy.decode(data, tables, *rows), repeat)[1]
    return {
        "over_entropy_own_table": len(data) / ideal - 1,
        "over_entropy_family": float(fixed.min()) / 8 / ideal - 1,
        "encode_million_symbols_per_s": len(symbols) / encoded / 1e6,
        "decode_million_symbols_per_s": len(symbols) / decoded / 1e6,
    }


def overlap(repeat: int) -> dict[str, Any]:
    """Layers of eight chunks decoded ahead of a computation that takes as long."""
    layers = random_layers()
    leases = []
    for i in range(8):
        header = FrameHeader("m", CHUNK, first_position=i * CHUNK)

        class Held:
            data = memoryview(b"".join(encode_layers(layers, header, "cachegen-1")))

            def release(self) -> None: ...

        leases.append(Held())

    def stream(compute: Callable[[], Any] | None) -> None:
        with LayerStream(leases, ahead=1) as found:
            for _ in found:
                if compute is not None:
                    compute()

    a = torch.randn(1024, 1024)
    product = best(lambda: a @ a, 5)[0]
    decode = best(lambda: stream(None), repeat)[0]
    times = max(1, round(decode / LAYERS / product))

    def compute() -> None:
        for _ in range(times):
            a @ a

    alone = best(lambda: [compute() for _ in range(LAYERS)], repeat)[0]
    together = best(lambda: stream(compute), repeat)[0]
    ideal = max(decode, alone) + min(decode, alone) / LAYERS
    return {
        "decode_ms": 1e3 * decode,
        "compute_ms": 1e3 * alone,
        "together_ms": 1e3 * together,
        "one_after_the_other_ms": 1e3 * (decode + alone),
        "hidden_share": (decode + alone - together) / (decode + alone - ideal),
    }


# -- hostile frames ---------------------------------------------------------------------------


def fuzz(count: int) -> dict[str, Any]:
    """Hostile frames of the test suite, many more of them."""
    from hostile import attack

    start = time.process_time()
    tally: dict[str, int] = {}
    for seed in track(range(count), description="hostile frames", transient=True):
        verdict = attack(seed)
        tally[verdict] = tally.get(verdict, 0) + 1
    return {"frames": count, "verdicts": tally, "processor_seconds": time.process_time() - start}


# -- output -----------------------------------------------------------------------------------


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=110)
    table = Table(title=f"frames of {CHUNK} tokens of real text")
    for heading in ("model", "codec", "smaller than fp16", "KL (nats)", "tables bit/el", "side"):
        table.add_column(heading, justify="left" if heading in ("model", "codec") else "right")
    for row in results["quality"]:
        side = [f"{row[k]:.3f}" if k in row else "" for k in
                ("table_bits_per_element", "side_bits_per_element")]  # fmt: skip
        ratio, kl = f"{row['smaller_than_fp16']:.2f}x", f"{row['kl_nats']:.2e}"
        table.add_row(row["model"], row["codec"], ratio, kl, *side)
    console.print(table)
    table = Table(title="MB of fp16 per second, two threads")
    for heading in ("codec", "encode", "per core", "decode", "per core"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for row in results["speed"]:
        table.add_row(row["codec"], *(f"{v:.0f}" for k, v in row.items() if k != "codec"))
    console.print(table)
    for name in ("coder", "overlap", "fuzz"):
        if name in results:
            console.print(name, results[name])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["tiny-llama", "tiny-qwen"])
    parser.add_argument("--texts", type=int, default=8, help="files per model")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--fuzz", type=int, default=0, help="hostile frames to read")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        results["quality"] = [row for name in given.models for row in quality(name, given.texts)]
        results["speed"] = [speed(codec, given.repeat) for codec in CODECS]
        results["coder"] = coder(given.repeat)
        results["overlap"] = overlap(given.repeat)
    write(results, given)
    if given.fuzz:
        results["fuzz"] = fuzz(given.fuzz)
        write(results, given)
    show(results)


def write(results: dict[str, Any], given: argparse.Namespace) -> None:
    """Results as JSON beside this file."""
    target = HERE / "results" / "store_wire.json"
    target.parent.mkdir(exist_ok=True)
    command = " ".join(["python benchmarks/store_wire.py", *sys.argv[1:]])
    about = {**vars(given), "torch": torch.__version__, "command": command}
    target.write_text(json.dumps({"about": about, **results}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
