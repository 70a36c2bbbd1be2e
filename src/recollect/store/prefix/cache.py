"""`prefix_cache`: stock `generate` of a model reuses the longest prefix that a store has.

Two hooks of PyTorch's own, before and after the model's forward pass, are all it takes: the first
fills the empty cache of a prefill and shortens the call to what is left; the second saves.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from recollect.errors import RecipeError
from recollect.kv import host
from recollect.kv.cache import RecollectCache
from recollect.kv.fingerprint import fingerprint
from recollect.kv.layer import KVLayer
from recollect.kv.policy import KVPolicy, policy
from recollect.recipe import Composition
from recollect.store.frames import nbytes
from recollect.store.prefix import chunks, states
from recollect.store.prefix.calls import Prompt, read_call, without_prefix
from recollect.store.prefix.chunks import KV
from recollect.store.prefix.found import Finder, Found
from recollect.store.prefix.models import check_layers, devices
from recollect.store.prefix.report import PrefixReport
from recollect.store.prefix.streamed import Arrival
from recollect.store.store import Store

WAITING = 4  # prefills that may wait to be saved; later ones are not


def prefix_cache(
    model: PreTrainedModel,
    store: Store,
    spec: str | Composition | KVPolicy = "full",
    *,
    chunk: int | None = None,
    codec: str | None = None,
    kernel: str = "auto",
    **arguments: Any,
) -> PrefixCache:
    """Make the model's stock `generate` reuse the longest stored prefix, until `close()`.

        with recollect.prefix_cache(model, store) as prefixes:
            model.generate(**inputs)
        print(prefixes.report)

    A recipe that keeps everything stores exact chunks of every prompt by itself. One that
    compresses stores what it is told to `remember`, and goes on from there.

    Args:
        model: a transformers decoder.
        store: where prefixes are kept; other processes may share it.
        spec, arguments: a recipe as for `kv_cache`.
        chunk: tokens per chunk; None for the store's.
        codec: of chunks: ``dense``, or one that loses something, such as ``int8``, whose chunks are
            kept apart from exact ones; None for the store's.
        kernel: as for `kv_cache`, with recipes that compress.

    Raises:
        RecipeError: unknown recipe or argument.
        HostError: the model cannot be hosted; the message says why.
        StoreError: unknown codec.
    """
    return PrefixCache(
        model, store, policy(spec, **arguments), chunk=chunk, codec=codec, kernel=kernel
    )


@dataclass
class _Prefill:
    """What the second hook needs to know of the first."""

    prompt: Prompt
    columns: int
    started: float
    arrival: Arrival | None = None


class PrefixCache:
    """The hooks on one model, between its forward pass and a store.

    Keys cover the model's weights as they were when this was made: make another after changing
    them (a fine-tuning step, another adapter).

    Attributes:
        report: what it did so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        store: Store,
        policy: KVPolicy,
        *,
        chunk: int | None = None,
        codec: str | None = None,
        kernel: str = "auto",
    ) -> None:
        self.model, self.store, self.policy = host.check_model(model), store, policy
        layers = check_layers(model)
        chunk = store.chunk if chunk is None else chunk
        if chunk < 1:
            raise RecipeError(f"a chunk has at least one token, not {chunk}")
        self._by_chunks = policy.is_plain and all(map(host.is_full_attention, layers))
        if codec is not None and not self._by_chunks:
            raise RecipeError(f"codec='{codec}' is for chunks; this recipe keeps its own form")
        name, codec = fingerprint(model), codec or store.plan.codec.name
        self._chunks = chunks.ChunkFormat.of(model, name, len(layers), chunk, codec)
        token_bytes = self._chunks.nbytes // chunk
        self._states = states.StateFormat(name, policy, model.dtype, chunk, token_bytes, kernel)
        # Where caches of ours are made, one lives from now on: it fails early, if at all, and the
        # model's attention is routed once.
        self._anchor = None if self._by_chunks else RecollectCache(model, policy, kernel=kernel)
        self.report = PrefixReport(len(layers))
        self._finder = Finder(self._chunks, store, self.report)
        self._computing = False  # a prefix that did not come: this call is no prefill of anyone's
        self._prefills: weakref.WeakKeyDictionary[Cache, _Prefill] = weakref.WeakKeyDictionary()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recollect-prefix")
        self._writing: deque[Future[None]] = deque()
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    @torch.no_grad()
    def remember(self, input_ids: torch.Tensor) -> int:
        """Store a prefix (1, T) now, unless it is there; returns how many of its tokens are.

        What is stored ends at a multiple of `chunk`; with a recipe that compresses, the decision
        what to keep is taken there, before any question is known.

        Raises:
            RecipeError: fewer tokens than one chunk, or a batch.
            HostError: more tokens than the model's context.
        """
        size = self._chunks.tokens
        if input_ids.dim() != 2 or input_ids.shape[0] != 1:
            raise RecipeError(f"remember one prefix at a time, (1, T), not {[*input_ids.shape]}")
        length = input_ids.shape[1] // size * size
        if length == 0:
            raise RecipeError(
                f"{input_ids.shape[1]} tokens are less than a chunk of {size}; give a smaller chunk"
            )
        ids = input_ids[:, :length]
        if self._by_chunks:
            cache = DynamicCache(config=self.model.config)
            self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.flush()
            return length
        key = self._states.keys(self.store, ids[0].tolist())[-1]
        if not self.store.contains(key):
            self._save_state(key, ids)
        return length

    def flush(self) -> None:
        """Wait until everything computed so far is saved."""
        while self._writing:
            self._writing.popleft().result()
        self.store.flush()

    def close(self) -> None:
        """Save what is waiting, and give the model back. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self.flush()
        self._writer.shutdown()
        if self._anchor is not None:
            self._anchor.close()

    def __enter__(self) -> PrefixCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the two hooks ---------------------------------------------------------------------------

    def _before(
        self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Fill the empty cache of a prefill, and leave the rest of the prompt to the model."""
        if self._computing:
            return None
        prompt = read_call(self.model, args, kwargs)
        cache = kwargs.get("past_key_values")
        if isinstance(prompt, Prompt) and not self._fills(cache):
            prompt = f"a {type(cache).__name__} was given"
        if not isinstance(prompt, Prompt):
            if prompt is not None:
                self.report.untouched[prompt] += 1
            return None
        assert isinstance(cache, Cache)
        started, arrival = time.perf_counter(), None
        if self._by_chunks:
            columns, arrival = self._fill(cache, prompt)
        else:
            cache, columns = self._state(prompt)
        self.report.prompts += len(prompt.ids)
        self.report.tokens += prompt.tokens
        self.report.load_seconds += time.perf_counter() - started
        self._prefills[cache] = _Prefill(prompt, columns, time.perf_counter(), arrival)
        return args, {**without_prefix(kwargs, columns), "past_key_values": cache}

    def _after(
        self, _module: torch.nn.Module, _args: Any, kwargs: Mapping[str, Any], _output: Any
    ) -> None:
        """Save what a prefill added."""
        cache = kwargs.get("past_key_values")
        prefill = self._prefills.pop(cache, None) if isinstance(cache, Cache) else None
        if prefill is None:
            return
        assert isinstance(cache, Cache)
        prompt, form = prefill.prompt, self._chunks
        rows, computed = len(prompt.ids), prompt.width - prefill.columns
        seconds = time.perf_counter() - prefill.started
        if prefill.arrival is not None:
            seconds -= self._arrived(cache, prefill.arrival)
        seconds /= rows
        if prefill.arrival is None or not prefill.arrival.was_computed:
            self.store.admission.observe_prefill(computed, seconds, prefill.columns)
        if not self._by_chunks:
            return
        new = prompt.chunks(form.tokens) - prompt.chunks(form.tokens, prefill.columns)
        if new == 0:
            return
        # What failed stays, for `flush` to tell: this request has nothing to do with it.
        self._writing = deque(x for x in self._writing if not x.done() or x.exception())
        if len(self._writing) >= WAITING:
            self.report.refused += new
            return
        work = (form, self.store, prompt, chunks.snapshot(cache), seconds / computed, self.report)
        self._writing.append(self._writer.submit(chunks.save, *work))

    # -- inside ----------------------------------------------------------------------------------

    def _fills(self, cache: Any) -> bool:
        """Whether this empty cache is one that can be filled (or replaced, by one of ours)."""
        if type(cache) is DynamicCache:
            return True
        return self._by_chunks and isinstance(cache, RecollectCache) and cache.policy.is_plain

    def _fill(self, cache: Cache, prompt: Prompt) -> tuple[int, Arrival | None]:
        """Columns that are in the cache, and what brings them if they are still to come."""
        later = type(cache) is DynamicCache and not cache.offloading
        found = self._finder.find(prompt, later=later)
        if found is None:
            return 0, None
        self.report.matched += found.matched
        homes = devices(self.model, self._chunks.layers)
        if found.is_complete:
            fill(cache, found, homes)
            return found.columns, None
        arrival = Arrival(found, homes, lambda: self._compute(prompt, found.columns))
        arrival.into(cache)
        return found.columns, arrival

    def _arrived(self, cache: Cache, arrival: Arrival) -> float:
        """Seconds that a prefill waited for its prefix, which is whole now."""
        arrival.settle(cache)
        found = arrival.found
        self.report.load_seconds += found.waited
        if arrival.was_computed:
            self.report.matched -= found.matched
        return found.waited

    @torch.no_grad()
    def _compute(self, prompt: Prompt, columns: int) -> list[KV]:
        """Keys and values of the first columns, by the model; zeros stand for padding."""
        place = torch.arange(columns)
        padding = torch.tensor(prompt.padding)[:, None]
        visible = place >= padding
        inputs = {
            "input_ids": prompt.ids[:, :columns],
            "attention_mask": visible.long(),
            "position_ids": (place - padding).clamp_min(0),
        }
        cache = DynamicCache(config=self.model.config)
        self._computing = True
        try:
            on_device = {name: x.to(self.model.device) for name, x in inputs.items()}
            self.model(**on_device, past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            self._computing = False
        layers = chunks.snapshot(cache)
        if not any(prompt.padding):
            return layers
        hidden = ~visible[:, None, :, None]
        return [
            (k.masked_fill(hidden.to(k.device), 0), v.masked_fill(hidden.to(v.device), 0))
            for k, v in layers
        ]

    def _state(self, prompt: Prompt) -> tuple[RecollectCache, int]:
        """A cache of ours with the longest prefix remembered, and how long that is.

        Beams are rows of one prompt and share it; other batches start from nothing.
        """
        new = RecollectCache(self.model, self.policy, kernel=self._states.kernel)
        rows = len(prompt.ids)
        if any(prompt.padding) or bool((prompt.ids != prompt.ids[:1]).any()):
            self.report.untouched["different prompts in one batch, nothing looked up"] += 1
            return new, 0
        cache = states.find(self._states, self.store, prompt.row(0), self.model, self.report)
        if cache is None:
            return new, 0
        new.close()
        tokens = cache.get_seq_length()
        self.report.matched += tokens * rows
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache, tokens

    def _save_state(self, key: bytes, ids: torch.Tensor) -> None:
        started = time.perf_counter()
        with RecollectCache(self.model, self.policy, kernel=self._states.kernel) as cache:
            cache.prefill(ids.to(self.model.device), chunk=ids.shape[1])
            seconds = time.perf_counter() - started
            frame = self._states.pack(cache)
            if self.store.put(key, frame, cost_seconds=seconds, tokens=ids.shape[1]):
                self.report.saved += 1
                self.report.saved_bytes += nbytes(frame)
            else:
                self.report.refused += 1


def fill(cache: Cache, found: Found, devices: Sequence[torch.device]) -> None:
    """Put a prefix into an empty cache of the host, or a plain one of ours, layer by layer."""
    padding = torch.tensor(found.padding) if any(found.padding) else None
    for index, device in enumerate(devices):
        k, v = (x.to(device) for x in found.layer(index))
        if not isinstance(cache, RecollectCache):
            cache.update(k, v, index)
            continue
        layer = cache.layers[index]
        assert isinstance(layer, KVLayer)
        layer.lazy_initialization(k, v)
        layer.hold(k, v)
        layer.seen = found.columns
        layer.padding = None if padding is None else padding.to(k.device)
