"""Whole prefixes: caches that do not fall into chunks, saved once and asked many times.

A compressed cache (or one with layers that forget, such as sliding windows) is a state after so
many tokens. It is stored under the key of its last chunk, in a scope of its own recipe, so that no
approximation is ever found where exact chunks are looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from recollect.errors import StoreError
from recollect.kv import persist
from recollect.kv.cache import RecollectCache
from recollect.kv.policy import KVPolicy
from recollect.store.admission import Stored
from recollect.store.frames import Buffer, FrameHeader, pack, unpack
from recollect.store.prefix.report import PrefixReport
from recollect.store.store import Store


@dataclass(frozen=True)
class StateFormat:
    """What states of a model under a recipe look like.

    Attributes:
        model: the model's fingerprint.
        policy: the recipe, without what it costs to run.
        dtype: of exact keys and values.
        chunk: states end at multiples of so many tokens.
        token_bytes: of a state per token, at most.
        kernel: of the caches read.
    """

    model: str
    policy: KVPolicy
    dtype: torch.dtype
    chunk: int
    token_bytes: int
    kernel: str = "auto"

    @property
    def codec(self) -> str:
        """What the frame says of its content: a plain state is exact, a compressed one is not."""
        return "state" if self.policy.is_plain else "compressed"

    def keys(self, store: Store, tokens: Sequence[int]) -> list[bytes]:
        """Key i is that of the state after ``(i + 1) * chunk`` tokens."""
        scope = f"state {self.policy.to_yaml()}"
        return store.chunk_keys(f"{self.model}/{self.dtype}", tokens, self.chunk, scope=scope)

    def pack(self, cache: RecollectCache) -> list[Buffer]:
        """A cache of one sequence as a frame."""
        tensors, layers = persist.state(cache)
        claims = {"schema": persist.SCHEMA, "policy": self.policy.to_yaml()}
        facts: dict[str, Any] = {**claims, "state": layers}
        header = FrameHeader(
            self.model,
            cache.get_seq_length(),
            codec=self.codec,
            layers=len(layers),
            facts=facts,
        )
        return pack(header, tensors)

    def read(self, data: memoryview, tokens: int, model: PreTrainedModel) -> RecollectCache:
        """The cache after `tokens` tokens, from its frame.

        Raises:
            StoreError: it is not what it should be.
        """
        frame = unpack(data, model=self.model)
        facts = frame.header.facts
        expected = (tokens, self.codec, persist.SCHEMA, self.policy.to_yaml())
        found = (frame.header.tokens, frame.header.codec, facts.get("schema"), facts.get("policy"))
        if found != expected:
            raise StoreError("the entry is another state than its key says")
        device = next(model.parameters()).device
        tensors = {
            name: frame.section(name).to("cpu" if name.endswith(persist.ON_CPU) else device).clone()
            for name in frame.sections
        }
        cache = RecollectCache(model, self.policy, kernel=self.kernel)
        try:
            persist.load_state(cache, tensors, facts["state"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            cache.close()
            raise StoreError(f"the entry is no state of this model: {error}") from error
        return cache


def find(
    form: StateFormat,
    store: Store,
    tokens: Sequence[int],
    model: PreTrainedModel,
    report: PrefixReport,
) -> RecollectCache | None:
    """The cache of the longest stored prefix, short of the last token, if it is worth loading."""
    keys = form.keys(store, tokens[: len(tokens) - 1])
    for index in reversed(range(len(keys))):
        key, length = keys[index], (index + 1) * form.chunk
        tiers = store.locate([key])
        if not tiers:
            continue
        held = Stored(tiers[0], length * form.token_bytes, length)
        if not store.admission.decide([held], len(tokens)).load:
            report.declined += length
            return None
        lease = store.get(key)
        if lease is None:  # gone since we looked
            continue
        with lease:
            try:
                cache = form.read(lease.data, length, model)
            except StoreError:
                store.set_aside(key)
                report.unusable += 1
                continue
            report.entries += 1
            report.loaded += lease.nbytes
            return cache
    return None
