"""The caches that diffusers brings along, on a denoiser of the zoo."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers.hooks as host
import torch
from diffusers.hooks.hooks import CacheContext, _set_cache_context

logging.getLogger("diffusers").setLevel(logging.ERROR)


class Setting(NamedTuple):
    """One configuration of one cache.

    Attributes:
        system: name of the cache.
        name: the setting, for tables.
        put_on: puts it on a model; takes a function that tells the timestep.
        batched: whether both branches of guidance must come in one batch.
    """

    system: str
    name: str
    put_on: Callable[[Any, Callable[[], float]], None]
    batched: bool = False


def context_of(model: Any) -> Callable[[str], Any]:
    """Tells the model's hooks which branch is called, as pipelines do."""

    @contextmanager
    def context(name: str) -> Iterator[None]:
        _set_cache_context(model, CacheContext(name))
        try:
            yield
        finally:
            _set_cache_context(model, None)

    return context


def settings(steps: int, ratios: list[float]) -> list[Setting]:
    """Every cache over the range of its parameters.

    Args:
        steps: denoising steps.
        ratios: MagCache's calibrated ratios for this model.
    """
    found: list[Setting] = []
    for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6):
        config = host.FirstBlockCacheConfig(threshold=threshold)
        found.append(
            Setting("FirstBlockCache", f"{threshold}", _put(host.apply_first_block_cache, config))
        )
    modules = [r".*attn1", r".*ff"]
    for every, order, start, lite in itertools.product(
        (2, 3, 4, 6), (0, 1, 2), (2, 3), (False, True)
    ):
        config = host.TaylorSeerCacheConfig(
            cache_interval=every,
            max_order=order,
            disable_cache_before_step=start,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=lite,
            cache_identifiers=None if lite else modules,
        )
        name = f"every {every}, order {order}, from {start}{', lite' if lite else ''}"
        found.append(Setting("TaylorSeer", name, _put(host.apply_taylorseer_cache, config)))
    for threshold, longest, kept in itertools.product(
        (0.06, 0.12, 0.24, 0.5), (2, 3, 5), (0.1, 0.2)
    ):
        config = host.MagCacheConfig(
            threshold=threshold,
            max_skip_steps=longest,
            retention_ratio=kept,
            num_inference_steps=steps,
            mag_ratios=torch.tensor(ratios),
        )
        name = f"{threshold}, longest {longest}, kept {kept}"
        found.append(Setting("MagCache", name, _put(host.apply_mag_cache, config)))
    for every, wide in itertools.product((2, 3, 4, 6), (False, True)):
        found.append(
            Setting("PAB", f"every {every}{', all steps' if wide else ''}", _pab(every, wide))
        )
    for every, skip, wide in itertools.product((2, 3), (3, 5), (False, True)):
        name = f"attention {every}, guidance {skip}{', all steps' if wide else ''}"
        found.append(Setting("FasterCache", name, _faster(every, skip, wide), batched=True))
    return found


def _put(
    apply: Callable[[Any, Any], None], config: Any
) -> Callable[[Any, Callable[[], float]], None]:
    return lambda model, time: apply(model, config)


def _pab(every: int, wide: bool) -> Callable[[Any, Callable[[], float]], None]:
    def put_on(model: Any, time: Callable[[], float]) -> None:
        config = host.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=every,
            spatial_attention_timestep_skip_range=(-1, 1001) if wide else (100, 800),
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=time,
        )
        host.apply_pyramid_attention_broadcast(model, config)

    return put_on


def _faster(every: int, skip: int, wide: bool) -> Callable[[Any, Callable[[], float]], None]:
    def put_on(model: Any, time: Callable[[], float]) -> None:
        late = (-1, 901) if wide else (-1, 681)
        config = host.FasterCacheConfig(
            spatial_attention_block_skip_range=every,
            spatial_attention_timestep_skip_range=late,
            unconditional_batch_skip_range=skip,
            unconditional_batch_timestep_skip_range=late,
            spatial_attention_block_identifiers=("transformer_blocks",),
            attention_weight_callback=lambda _: 0.5,
            tensor_format="BCHW",
            current_timestep_callback=time,
            _unconditional_conditional_input_kwargs_identifiers=[
                "hidden_states", "timestep", "class_labels",
            ],
        )  # fmt: skip
        host.apply_faster_cache(model, config)

    return put_on
