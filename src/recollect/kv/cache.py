"""RecollectCache: a transformers Cache whose full-attention layers follow a policy."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recollect.errors import HostError, RecipeError
from recollect.kv import host
from recollect.kv.arena import KVArena, Tenant
from recollect.kv.artefacts import bind
from recollect.kv.hidden import HiddenTap
from recollect.kv.layer import KVLayer, LayerPlan
from recollect.kv.policy import KVPolicy, policy
from recollect.kv.report import CacheReport, LayerReport
from recollect.kv.rope import RopeTap
from recollect.recipe import Composition

KERNELS = ("auto", "host", "ours")


def kv_cache(
    model: PreTrainedModel,
    spec: str | Composition | KVPolicy = "full",
    *,
    kernel: str = "auto",
    arena: KVArena | None = None,
    **arguments: Any,
) -> RecollectCache:
    """A cache for `model` that follows a recipe; pass it as ``past_key_values``.

    Args:
        model: any transformers decoder that uses the attention interface.
        spec: recipe name, ``"a + b(x=1)"``, one line of YAML, or a `KVPolicy`.
        kernel: ``auto`` uses our kernels where they are faster (equal to the host's within 1e-5 in
            float32); ``host`` uses the model's own attention wherever it can (bit-identical while
            nothing is dropped); ``ours`` uses our kernels wherever they can.
        arena: with ``vattention``, the `arena` of another cache of this model, to share its memory.
        arguments: `keep` (fraction or number of tokens per head) and any parameter of the recipe.

    Raises:
        RecipeError: unknown recipe or argument, or a combination that makes no sense.
        HostError: the model cannot be hosted; the message says why.
    """
    return RecollectCache(model, policy(spec, **arguments), kernel=kernel, arena=arena)


class RecollectCache(Cache):
    """The cache of one generation (or of several turns of one conversation).

    While any cache of a model lives, the model's attention is routed through recollect, which
    computes the model's own attention for everything that is not one of its caches; `close()`, or
    the cache's end of life, gives it back.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: KVPolicy,
        *,
        kernel: str = "auto",
        arena: KVArena | None = None,
    ) -> None:
        if kernel not in KERNELS:
            raise RecipeError(f"kernel is one of {', '.join(KERNELS)}, not '{kernel}'")
        model = host.check_model(model)
        layers = host.host_layers(model)
        governed = [i for i, layer in enumerate(layers) if host.is_full_attention(layer)]
        self.policy = policy = bind(policy, model)
        self.kernel = kernel
        self.model_ref = weakref.ref(model)
        self._own_arena = arena is None
        self.arena = _arena(arena, policy, model)
        taps_needed = bool(policy.needs & {"rope", "hidden"})
        modules = host.attention_modules(model) if taps_needed else {}
        if taps_needed and (missing := set(governed) - set(modules)):
            raise HostError(f"cannot find the attention module of layer {min(missing)}")
        tap = RopeTap(model, modules) if "rope" in policy.needs else None
        hidden = HiddenTap(modules) if "hidden" in policy.needs else None
        taps = [found for found in (tap, hidden) if found is not None]
        try:
            host.attach(model)
        except HostError:
            for one in taps:
                one.remove()
            raise
        self._release = weakref.finalize(self, _release, self.model_ref, taps)
        tenant = None if self.arena is None else Tenant(self.arena)
        if tenant is not None:
            weakref.finalize(self, tenant.close)
        for rank, index in enumerate(governed):
            rope = None if tap is None else tap.layers[index]
            noted = None if hidden is None else hidden.layers[index]
            layers[index] = KVLayer(
                LayerPlan(policy, index, rank, len(governed), kernel, rope, tenant, noted)
            )
        super().__init__(layers=layers)

    @property
    def governed(self) -> list[KVLayer]:
        """The layers that follow the policy; others (sliding windows …) are the host's."""
        return [layer for layer in self.layers if isinstance(layer, KVLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes really held, layers left to the host included."""
        return sum(_layer_nbytes(layer) for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Bytes the host's own cache would hold for the tokens seen."""
        return sum(
            layer.dense_nbytes if isinstance(layer, KVLayer) else _layer_nbytes(layer)
            for layer in self.layers
        )

    def report(self) -> CacheReport:
        """Kept tokens, bytes and time, by layer and head."""
        layers = tuple(
            LayerReport(
                layer.plan.index,
                layer.seen,
                tuple(layer.kept.float().mean(0).tolist()) if layer.slab is not None else (),
                layer.nbytes,
                layer.seconds,
            )
            for layer in self.governed
        )
        return CacheReport(self.policy.to_yaml(), layers, self.nbytes, self.dense_nbytes)

    def copy(self) -> RecollectCache:
        """An independent cache with the same content, e.g. to ask several questions about one
        compressed context."""
        from recollect.kv.persist import copy_state

        twin = RecollectCache(self._model(), self.policy, kernel=self.kernel, arena=self.arena)
        copy_state(self, twin)
        return twin

    def save(self, path: str | Path) -> None:
        """Write the cache to one safetensors file. Raises StoreError when that fails."""
        from recollect.kv.persist import save

        save(self, Path(path))

    @contextmanager
    def prefilling(self) -> Iterator[RecollectCache]:
        """Treat every forward pass inside as part of one prompt and decide when it ends.

        With a `PerBlock` schedule the layers decide after every block instead.
        """
        if not self.policy.schedule.every_chunk:
            for layer in self.governed:
                layer.deferred = True
        try:
            yield self
        finally:
            for layer in self.governed:
                if layer.deferred:
                    layer.finish_prefill()

    @torch.no_grad()
    def prefill(self, input_ids: torch.Tensor, *, chunk: int = 512, **inputs: Any) -> Any:
        """Run the model over a prompt in chunks, so that activations stay small.

        Args:
            input_ids: (B, T) token ids; pass `attention_mask` for padded batches.
            chunk: tokens per forward pass.

        Returns the model's output for the last chunk. With the `PerBlock` schedule no layer ever
        holds more than its budget plus one chunk.

        Raises:
            HostError: the prompt is longer than the model's context (contiguous positions have no
                such limit).
        """
        if chunk < 1:
            raise RecipeError(f"chunk must be at least 1, got {chunk}")
        model, mask, output = self._model(), inputs.pop("attention_mask", None), None
        start = self.get_seq_length()
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        wanted = start + input_ids.shape[1]
        if limit is not None and wanted > limit and not self.policy.positions.contiguous:
            raise HostError(
                f"{wanted} tokens are more than the model's context of {limit}; shorten the prompt "
                f"by {wanted - limit}, or use streaming-llm"
            )
        with self.prefilling():
            for first in range(0, input_ids.shape[1], chunk):
                last = min(first + chunk, input_ids.shape[1])
                seen = {} if mask is None else {"attention_mask": mask[:, : start + last]}
                output = model(
                    input_ids=input_ids[:, first:last],
                    past_key_values=self,
                    use_cache=True,
                    **seen,
                    **inputs,
                )
        return output

    def close(self) -> None:
        """Give the model its own attention back (when this is its last cache) and free memory."""
        self._release()
        for layer in self.layers:
            layer.reset()
        if self.arena is not None and self._own_arena:
            self.arena.trim()

    def __enter__(self) -> RecollectCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, _memo: dict[int, Any]) -> RecollectCache:
        return self.copy()

    def _model(self) -> PreTrainedModel:
        model = self.model_ref()
        if model is None:
            raise HostError("the model of this cache is gone; keep a reference to it")
        return model


def _arena(given: KVArena | None, policy: KVPolicy, model: PreTrainedModel) -> KVArena | None:
    """The arena to store in: the given one, a new one, or none where the policy wants none."""
    if policy.storage is None:
        if given is not None:
            raise RecipeError("only 'vattention' stores in an arena; leave arena out")
        return None
    if given is not None:
        return given
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None and policy.storage.context is None:
        raise RecipeError(f"{type(model).__name__} names no context length; give context=")
    return KVArena(policy.storage, context or 0)


def _release(model_ref: weakref.ref[PreTrainedModel], taps: list[RopeTap | HiddenTap]) -> None:
    model = model_ref()
    for tap in taps:
        tap.remove()
    if model is not None:
        host.detach(model)


def _layer_nbytes(layer: Any) -> int:
    if isinstance(layer, KVLayer):
        return layer.nbytes
    tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
