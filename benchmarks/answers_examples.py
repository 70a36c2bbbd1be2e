"""Question: do examples chosen by usefulness help a small model more than similar ones?

    python benchmarks/answers_examples.py --seeds 3

The small model is the zoo's tiny-llama (2 million weights), which has learned to find facts in its
prompt and knows none of those asked for: a number that belongs to a name. The world is made up so
that similar is not the same as helpful: of each name's past requests one reads differently and
tells the number; six read like the question, and 15% of them tell it. No large model runs: where
one is routed to, its answers are taken to be right at eight times the cost. Vectors are the
n-gram encoder's. Results go to benchmarks/results/answers_examples.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from recollect import zoo
from recollect.answers.encoders import NgramEncoder
from recollect.answers.examples import Example, InContextCache, Model
from recollect.answers.examples.prompt import render

HERE = Path(__file__).resolve().parent
SMALL, LARGE = Model("tiny-llama", cost=1.0), Model("oracle", cost=8.0, strong=True)
MOST = 3  # examples in a prompt
TELLING = 0.15  # share of look-alikes that tell the number as well
FIRST = ("amber", "brisk", "coral", "dusty", "early", "faint", "giant", "hollow", "ivory", "jolly")
SECOND = (
    "badger",
    "cedar",
    "delta",
    "ember",
    "falcon",
    "garnet",
    "harbor",
    "island",
    "jasper",
    "kettle",
)


@dataclass(frozen=True)
class World:
    """Names with their numbers, and past requests with answers: most of them no help."""

    numbers: dict[str, str]
    past: list[tuple[str, str]]

    @classmethod
    def make(cls, seed: int) -> World:
        rng = random.Random(seed)
        names = [f"{a}_{b}" for a, b in zip(FIRST, rng.sample(SECOND, 10), strict=True)]
        numbers = {name: str(rng.randrange(10_000, 100_000)) for name in names}
        past = [(f"please note {name}", f"# {name} {numbers[name]}") for name in names]
        for name in names:
            for line in rng.sample(range(1000), 6):
                told = f"# {name} {numbers[name]}" if rng.random() < TELLING else "passed"
                past.append((f"line {line}: assert {name}", f"{told} after {line % 60} seconds"))
        rng.shuffle(past)
        return cls(numbers, past)

    def ask(self, rng: random.Random) -> tuple[str, str]:
        name, number = rng.choice(list(self.numbers.items()))
        return f"assert {name}", number


@dataclass
class SmallModel:
    """tiny-llama, greedy; counts its own time. Answers are kept: equal prompts are run once."""

    seconds: float = 0.0
    calls: int = 0
    known: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model, self.tokenizer = zoo.load("tiny-llama")

    @torch.inference_mode()
    def __call__(self, prompt: str) -> str:
        if prompt not in self.known:
            start = time.perf_counter()
            ids = self.tokenizer(prompt, return_tensors="pt").input_ids
            out = self.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
            self.known[prompt] = self.tokenizer.decode(out[0, ids.shape[1] :])
            self.seconds += time.perf_counter() - start
            self.calls += 1
        return self.known[prompt]

    def quality(self, prompt: str, number: str) -> float:
        return float(self(prompt).strip().startswith(number))


def chat(text: str) -> dict:
    return {"model": SMALL.name, "messages": [{"role": "user", "content": text}]}


def filled(world: World, models: list[Model], seed: int, **arguments: object) -> InContextCache:
    cache = InContextCache(models, encoder="ngram", seed=seed, most=MOST, **arguments)
    for query, answer in world.past:
        used = cache.prepare(chat(query), scope_id="u").used
        cache.observe(used, response=answer, verified=True)
    return cache


def orderings(seed: int, small: SmallModel, train: int, test: int) -> dict[str, float]:
    """Share of right answers by what is shown, after `train` requests with feedback."""
    world, rng = World.make(seed), random.Random(seed)
    cache, encoder = filled(world, [SMALL], seed), NgramEncoder()
    for _ in range(train):
        text, number = world.ask(rng)
        _, request, used = cache.prepare(chat(text), scope_id="u")
        cache.observe(used, quality=small.quality(request["messages"][-1]["content"], number))
    cache.selector.policy = replace(cache.selector.policy, explore=False)
    vectors = encoder.encode([query for query, _ in world.past])
    pool = [Example(at, (), *pair, "", 0.0) for at, pair in enumerate(world.past)]
    right: dict[str, list[float]] = {}
    for _ in range(test):
        text, number = world.ask(rng)
        nearest = np.argsort(-(vectors @ encoder.encode([text])[0]))[:MOST]
        chosen = cache.prepare(chat(text), scope_id="u").request["messages"][-1]["content"]
        prompts = {
            "useful": chosen,
            "similar": render([pool[at] for at in nearest[::-1]], text),
            "random": render(rng.sample(pool, MOST), text),
            "none": text,
        }
        for name, prompt in prompts.items():
            right.setdefault(name, []).append(small.quality(prompt, number))
    return {name: float(np.mean(values)) for name, values in right.items()}


def routing(seed: int, small: SmallModel, steps: int) -> list[dict[str, object]]:
    """What the small model takes, quality and cost; feedback only where it is asked for."""
    world, rng = World.make(seed), random.Random(seed)
    cache = filled(world, [SMALL, LARGE], seed, cost_price=0.02, load_price=0.1)
    rows = []
    for phase, load in (("new", 0.3), ("calm", 0.3), ("overload", 1.5), ("calm again", 0.3)):
        taken, quality, cost, asked = 0, 0.0, 0.0, 0
        for _ in range(steps):
            text, number = world.ask(rng)
            _, request, used = cache.prepare(chat(text), scope_id="u", load=load)
            good = 1.0
            if used.model is not LARGE:
                good = small.quality(request["messages"][-1]["content"], number)
            if used.wants_feedback:
                cache.observe(used, quality=good)
            taken, quality = taken + (used.model is not LARGE), quality + good
            cost, asked = cost + used.model.cost, asked + used.wants_feedback
        rows.append(
            {
                "phase": phase,
                "load": load,
                "to_small": taken / steps,
                "quality": quality / steps,
                "cost": cost / steps,
                "asked_feedback": asked / steps,
            }
        )
    return rows


def overhead(seed: int) -> float:
    """Median milliseconds of `prepare` with 70 examples, encoder included."""
    world, rng = World.make(seed), random.Random(seed)
    cache, times = filled(world, [SMALL], seed), []
    for _ in range(200):
        request = chat(world.ask(rng)[0])
        start = time.perf_counter()
        cache.prepare(request, scope_id="u")
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="worlds to average over")
    parser.add_argument("--train", type=int, default=200, help="requests with feedback")
    parser.add_argument("--test", type=int, default=80, help="requests that count")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "answers_examples.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, small = Console(), SmallModel()

    runs = [orderings(seed, small, given.train, given.test) for seed in range(given.seeds)]
    table = Table("examples", "right", "worst seed", "best seed", title="tiny-llama, share right")
    for name in runs[0]:
        values = [run[name] for run in runs]
        cells = (np.mean(values), min(values), max(values))
        table.add_row(name, *(f"{value:.1%}" for value in cells))
    console.print(table)

    phases = [routing(seed, small, given.train) for seed in range(given.seeds)]
    means = [
        {
            key: rows[0][key] if key == "phase" else float(np.mean([row[key] for row in rows]))
            for key in rows[0]
        }
        for rows in zip(*phases, strict=True)
    ]
    table = Table(*means[0], title="routing between tiny-llama and an oracle at 8 times its cost")
    for row in means:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)

    prepare, model = overhead(0), small.seconds / small.calls * 1000
    console.print(f"prepare {prepare:.2f} ms, tiny-llama {model:.1f} ms a request (one thread)")
    result = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "train": given.train,
        "test": given.test,
        "orderings": runs,
        "routing": means,
        "prepare_ms": prepare,
        "model_ms": model,
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
