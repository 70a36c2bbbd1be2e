"""What a zoo model can do: recall by length of the context, and perplexity on unseen source.

Everything is measured on files and keys that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from recollect.zoo import corpus, needles

BARS = {1024: 0.97, 2048: 0.95, 4096: 0.90}
"""Share of exact answers that a shipped model must reach, by tokens of the context."""


def measure(
    model: Any,
    tokenizer: Any,
    lengths: Sequence[int] = (1024, 2048, 4096),
    cases: int | Sequence[int] = 128,
    keys: int = 8,
    seed: int = 0,
    source_tokens: int = 32768,
) -> dict[str, Any]:
    """Needle accuracy per length, and perplexity on held-out source.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        lengths: tokens of context, question and answer together, at most.
        cases: questions per length (one number, or one for each length). The `keys` questions
            about one context are asked separately, each right after the context.
        keys: facts hidden in every context.
        seed: of contexts and questions.
        source_tokens: tokens of held-out source to take the perplexity of; 0 to skip it.

    Returns:
        `{"needle": {length: {"exact": …, "digits": …, "cases": …}}, "perplexity": …, …}`. An
        answer is exact when greedy decoding writes all its digits and ends the line.
    """
    counts = [cases] * len(lengths) if isinstance(cases, int) else list(cases)
    needle = {
        length: recall(model, tokenizer, length, count, keys, seed)
        for length, count in zip(lengths, counts, strict=True)
    }
    found: dict[str, Any] = {"needle": needle, "keys": keys, "seed": seed}
    if source_tokens:
        found["perplexity"] = perplexity(model, tokenizer, source_tokens)
        found["source_tokens"] = source_tokens
    return found


@torch.inference_mode()
def recall(
    model: Any,
    tokenizer: Any,
    length: int,
    cases: int,
    keys: int = 8,
    seed: int = 0,
    alike: bool = False,
) -> dict[str, float | int]:
    """Share of exact answers and of right digits for 1 needle among `keys` at one length.

    With `alike`, the keys share words with each other (see `needles.alike_keys`).
    """
    rng = random.Random(f"bars {seed} {length}")
    hay = Hay(tokenizer)
    exact = digits = all_digits = asked = 0
    while asked < cases:
        puzzle = needles.single(rng, keys, alike=alike)
        context = hay.context(puzzle, rng, length)
        asks = puzzle.asks[: cases - asked]
        for right in _answers(model, tokenizer, context, asks):
            asked += 1
            exact += bool(right.all())
            digits += int(right[:-1].sum())  # the last one is the end of the line
            all_digits += len(right) - 1
    return {"exact": exact / asked, "digits": digits / all_digits, "cases": asked}


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, tokens: int = 32768, window: int = 1024) -> float:
    """Perplexity of held-out source, in windows that start afresh."""
    ids: list[int] = []
    for text in corpus.documents("held-out"):
        ids += tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if len(ids) >= tokens:
            break
    rows = min(tokens, len(ids)) // window
    windows = torch.tensor(ids[: rows * window], device=model.device).view(rows, window)
    start = windows.new_full((1, 1), tokenizer.bos_token_id)
    total = 0.0
    for row in windows.split(1):
        logits = model(torch.cat([start, row[:, :-1]], 1), use_cache=False).logits
        total += F.cross_entropy(logits[0].float(), row[0], reduction="sum").item()
    return float(torch.tensor(total / (rows * window)).exp())


class Hay:
    """Held-out source as lines, with the number of tokens of each."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.lines = corpus.lines("held-out")
        encoded = tokenizer(list(self.lines), add_special_tokens=False)["input_ids"]
        self.sizes = [len(ids) for ids in encoded]

    def context(self, puzzle: needles.Puzzle, rng: random.Random, length: int) -> str:
        """Source with the puzzle buried in it, leaving room in `length` for its longest ask."""
        longest = max(self._size(ask.question + ask.answer + "\n") for ask in puzzle.asks)
        room = length - 1 - longest - sum(self._size(line) for line in puzzle.planted)
        index = rng.randrange(len(self.lines) - length)
        taken: list[str] = []
        while index < len(self.lines) and room >= self.sizes[index]:
            taken.append(self.lines[index])
            room -= self.sizes[index]
            index += 1
        return needles.bury(puzzle.planted, taken, rng)

    def _size(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def _answers(
    model: Any, tokenizer: Any, context: str, asks: Sequence[needles.Ask]
) -> list[torch.Tensor]:
    """For every ask, which tokens of its answer (and end of line) the model ranks first.

    The context is read once; all questions then continue copies of its cache. A teacher-forced
    answer is all right exactly when the greedily decoded one is.
    """
    ids = torch.tensor([tokenizer.encode(context)], device=model.device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(asks))
    questions = [tokenizer.encode(ask.question, add_special_tokens=False) for ask in asks]
    answers = [tokenizer.encode(ask.answer + "\n", add_special_tokens=False) for ask in asks]
    rows = [question + answer for question, answer in zip(questions, answers, strict=True)]
    width = max(map(len, rows))
    # Padding on the right is never seen by the tokens before it.
    padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    logits = model(torch.tensor(padded, device=model.device), past_key_values=cache).logits
    best = logits.argmax(-1).cpu()
    found = []
    for row, question, answer in zip(best, questions, answers, strict=True):
        begin = len(question) - 1
        found.append(row[begin : begin + len(answer)] == torch.tensor(answer))
    return found
