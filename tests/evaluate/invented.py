"""An invented run: records with plausible numbers, to look at reports without a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

RECIPES = {  # how fast quality falls when the question is unseen / in view
    "streaming-llm": (0.9, 0.85),
    "knorm": (0.5, 0.5),
    "tova": (0.55, 0.3),
    "snapkv": (0.45, 0.12),
    "adakv": (0.36, 0.08),
    "expected-attention": (0.25, 0.2),
    "snapkv + kivi": (0.46, 0.13),
}
TASKS = ("needle", "needle-keys", "turns", "code", "perplexity")
LAYERS, HEADS = 4, 3


def write_run(
    folder: Path,
    recipes: dict[str, tuple[float, float]] = RECIPES,
    *,
    seeds: int = 2,
    cases: int = 4,
    timed: bool = True,
) -> Path:
    """Write run.json and results.jsonl of an invented run."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "schema": 1,
        "settings": {
            "recipes": list(recipes), "keeps": [0.5, 0.25, 0.1], "tasks": list(TASKS),
            "modes": ["agnostic", "aware"], "lengths": [1024], "seeds": seeds, "cases": cases,
            "chat": False, "decode_steps": 16, "speed_rounds": 3,
        },
        "model": {
            "name": "invented", "type": "llama", "parameters": 1_700_000, "layers": LAYERS,
            "dtype": "float32", "device": "cpu", "context": 8192, "fingerprint": "0" * 32,
        },
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "command": "recollect eval --model invented --recipes snapkv,knorm",
        "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    lines = _quality(recipes, seeds, cases) + (_speed(recipes) if timed else [])
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _variants(recipes: dict[str, tuple[float, float]]) -> list[tuple[str, float]]:
    keeps = (0.5, 0.25, 0.1)
    return [("host", 1.0), ("full", 1.0), *((name, keep) for name in recipes for keep in keeps)]


def _quality(recipes: dict[str, tuple[float, float]], seeds: int, cases: int) -> list[dict]:
    rng = random.Random(0)
    lines = []
    for seed in range(seeds):
        for case in range(cases):
            for rank, task in enumerate(TASKS):
                for side, mode in enumerate(("agnostic", "aware")):
                    for recipe, keep in _variants(recipes):
                        fall = recipes.get(recipe, (0, 0))[side]
                        right = (0.97 - 0.1 * rank) * math.exp(fall * math.log2(keep))
                        tokens = sum(rng.random() < right for _ in range(10)) / 10
                        line = {
                            "kind": "case", "recipe": recipe, "keep": keep, "task": task,
                            "mode": mode, "length": 1024, "seed": seed, "case": case,
                            "tokens_in": 1020,
                            "metrics": {
                                "tokens": tokens,
                                "exact": None if task == "perplexity" else float(tokens > 0.8),
                                "logprob": -0.2 - 3 * (1 - tokens),
                                "kl": 0.0 if keep == 1.0 else 2 * (1 - tokens),
                            },
                            "nbytes": int(keep * (300 if "kivi" in recipe else 1000)),
                            "dense_nbytes": 1000,
                            "prefill_seconds": 0.1, "compress_seconds": 0.01,
                        }  # fmt: skip
                        if seed == case == rank == 0 and recipe != "host":
                            line["seen"] = 1020
                            line["kept"] = _kept(rng, recipe, keep)
                        lines.append(line)
    return lines


def _kept(rng: random.Random, recipe: str, keep: float) -> list[list[float]]:
    spread = 0.5 if recipe == "adakv" else 0.0
    return [
        [round(1020 * keep * (1 + spread * rng.uniform(-1, 1))) for _ in range(HEADS)]
        for _ in range(LAYERS)
    ]


def _speed(recipes: dict[str, tuple[float, float]]) -> list[dict]:
    rng = random.Random(1)
    return [
        {
            "kind": "speed", "length": 1024, "recipe": recipe, "keep": keep, "round": number,
            "prefill_seconds": 0.1, "compress_seconds": 0.01,
            "step_seconds": 0.01 * (0.4 + 0.6 * keep) * rng.uniform(0.9, 1.1),
            "nbytes": int(1000 * keep), "dense_nbytes": 1000,
        }
        for number in range(3)
        for recipe, keep in _variants(recipes)
    ]  # fmt: skip
