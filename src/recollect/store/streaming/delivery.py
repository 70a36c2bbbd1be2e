"""Chunks of one prompt from a store under a deadline, each at the level a policy chooses.

A chunk's key is the same at every level; the entries of its levels lie under keys derived from it.
The next chunk is fetched while the last one is decoded, or computed again. A chunk that is missing
or corrupt at the chosen level is computed again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch

from recollect.errors import StoreError
from recollect.store.frames import decode_layer, unpack
from recollect.store.streaming.controller import TEXT, Chunk, Policy, Progress, Throughput
from recollect.store.streaming.loader import Holder

Layers = list[tuple[torch.Tensor, torch.Tensor]]
LEVELS = ("cachegen-0", "cachegen-1", "cachegen-2", "cachegen-3")


class Source(Protocol):
    """Where entries come from; a `Store` is one."""

    def get(self, key: bytes) -> Holder | None: ...


class Delivered(NamedTuple):
    """A chunk: which level it came at (`TEXT`: computed again), and (k, v) of every layer."""

    choice: int
    layers: Layers


def level_key(key: bytes, codec: str) -> bytes:
    """Key (32 bytes) of a chunk in that codec; dense ones lie under the key itself."""
    if codec == "dense":
        return key
    return hashlib.blake2b(key, digest_size=32, person=codec.encode()[:16]).digest()


def deliver(
    store: Source,
    keys: Sequence[bytes],
    chunks: Sequence[Chunk],
    recompute: Callable[[int, Sequence[Delivered]], Layers],
    policy: Policy,
    deadline: float,
    *,
    codecs: Sequence[str] = LEVELS,
    model: str | None = None,
    throughput: Throughput | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Delivered]:
    """Every chunk, fetched or computed again.

    Args:
        keys: of the chunks, in order.
        chunks: their sizes at each level and what computing them again takes, as estimated.
        recompute: called with a chunk's number and all chunks before it.
        deadline: seconds from now.
        codecs: of the levels, best first.
        throughput: what was measured on this link before; updated here.
    """
    throughput = throughput or Throughput()
    start, progress = clock(), Progress()
    done: list[Future[Delivered]] = []
    with (
        ThreadPoolExecutor(1, thread_name_prefix="recollect-decode") as decoder,
        ThreadPoolExecutor(1, thread_name_prefix="recollect-recompute") as model_thread,
    ):

        def again(number: int) -> Delivered:
            return Delivered(TEXT, recompute(number, [future.result() for future in done[:number]]))

        def decode(number: int, choice: int, lease: Holder) -> Delivered:
            try:
                return Delivered(choice, _decoded(lease, model))
            except StoreError:
                return again(number)  # whoever computes waits for all before it: never two at once
            finally:
                lease.release()

        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
            now = clock() - start
            progress = Progress(now, max(now, progress.ready))
            choice = policy.choose(chunks[number:], progress, deadline, throughput.bandwidth)
            lease = None if choice == TEXT else store.get(level_key(key, codecs[choice]))
            seconds = clock() - start - now
            if lease is None:
                choice = TEXT
                done.append(model_thread.submit(again, number))
            else:
                throughput.observe(len(lease.data), seconds)
                done.append(decoder.submit(decode, number, choice, lease))
            progress = progress.after(chunk, choice, seconds)
        return [future.result() for future in done]


def _decoded(lease: Holder, model: str | None) -> Layers:
    frame = unpack(lease.data, model=model, verify=False)
    layers = [decode_layer(frame, layer) for layer in range(frame.header.layers)]
    if frame.header.codec == "dense":  # views of the lease
        layers = [(k.clone(), v.clone()) for k, v in layers]
    return layers
