"""cache-dit on a denoiser of the zoo; runs in the environment that make_env.py makes for it.

    .venvs/cache-dit/bin/python benchmarks/peers/cache_dit_worker.py --out pictures.safetensors \\
        --steps 30 --solver euler --pictures 64 --seed 1000
    .venvs/cache-dit/bin/python benchmarks/peers/cache_dit_worker.py --interference --steps 12

Writes pictures by setting, with name and floating-point operations of each in the file's metadata;
or prints what requests do to one another, in JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).resolve().parent)]

import cache_dit  # noqa: E402
from cache_dit import BlockAdapter, DBCacheConfig, TaylorSeerCalibratorConfig  # noqa: E402
from drawing import Loop, draw, interference  # noqa: E402

from recollect.zoo import images  # noqa: E402


def settings(steps: int) -> list[tuple[str, dict[str, Any], int | None]]:
    """(name, arguments of DBCacheConfig, order of the forecast) of every setting."""
    found: list[tuple[str, dict[str, Any], int | None]] = []
    for front, threshold, warmup, order in itertools.product(
        (1, 2), (0.08, 0.12, 0.24, 0.4, 0.8), (2, 4), (None, 1, 2)
    ):
        config = {"Fn_compute_blocks": front, "residual_diff_threshold": threshold,
                  "max_warmup_steps": warmup}  # fmt: skip
        name = f"F{front}B0 {threshold}, warm-up {warmup}"
        found.append((name, config, order))
        if threshold >= 0.24:
            found.append(
                (f"{name}, longest 3", {**config, "max_continuous_cached_steps": 3}, order)
            )
    for mask, policy, order in itertools.product(
        ("slow", "medium", "fast", "ultra"), ("dynamic", "static"), (None, 1)
    ):
        bits = cache_dit.steps_mask(mask_policy=mask, total_steps=steps)
        config = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 2,
                  "steps_computation_mask": bits, "steps_computation_policy": policy}  # fmt: skip
        found.append((f"mask {mask}, {policy}", config, order))
    return found


def put_on(model: Any, config: dict[str, Any], order: int | None, steps: int) -> None:
    """Enable cache-dit on the model, for guidance in two calls."""
    calibrator = None if order is None else TaylorSeerCalibratorConfig(taylorseer_order=order)
    full = {"Bn_compute_blocks": 0, "enable_separate_cfg": True, "num_inference_steps": steps}
    cache_dit.enable_cache(
        BlockAdapter(
            transformer=model,
            blocks=model.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            patch_functor=cache_dit.caching.patch_functors.DiTPatchFunctor(),
            has_separate_cfg=True,
            check_forward_pattern=False,
        ),
        cache_config=DBCacheConfig(**{**full, **config}),
        calibrator_config=calibrator,
    )


def _requests(steps: int) -> Callable[[int], Loop]:
    """Generations on one new model."""
    model = images.load("tiny-dit")
    put_on(model, {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 2},
           1, steps)  # fmt: skip
    return lambda seed: Loop(model, 2, steps, seed, "euler")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--few", action="store_true", help="two settings only")
    parser.add_argument("--interference", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--solver", default="euler")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.interference:
        print(json.dumps(interference(lambda: _requests(args.steps), args.steps)))
        return
    tensors, rows = {}, []
    for number, (name, config, order) in enumerate(settings(args.steps)[:: 40 if args.few else 1]):
        model = images.load("tiny-dit")  # anew for each: it patches what it is put on
        put_on(model, config, order, args.steps)
        loop = Loop(model, args.pictures, args.steps, args.seed, args.solver)
        pictures, flops = draw(loop)
        tensors[str(number)] = pictures.contiguous()
        label = name if order is None else f"{name}, order {order}"
        rows.append({"system": "cache-dit", "name": label, "flops": flops})
        print(f"{number}: {label}", file=sys.stderr, flush=True)
    save_file(tensors, args.out, metadata={"rows": json.dumps(rows)})


if __name__ == "__main__":
    main()
