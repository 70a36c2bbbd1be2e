"""The attack against a cache with each defence on and off, and what the defence costs others.

Everything goes through `Answers`: Mallory plants what a model answered to her text, the victim
asks, and the attack succeeded when the planted answer is what came back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.answers.admission import Quarantine
from recollect.answers.answers import Answers
from recollect.answers.clock import ManualClock
from recollect.answers.encoders.base import Encoder
from recollect.answers.redteam.levels import adaptive, concatenation, splice
from recollect.answers.redteam.texts import CANARY, INSTRUCTIONS, QUESTIONS
from recollect.answers.verifiers import Contrast, Coverage, Guards
from recollect.errors import RecipeError

LEVELS = ("concatenation", "splice", "adaptive")

# What each defence adds to a cache with one threshold in global scope.
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "contrast": {"verifier": Contrast()},
    "coverage": {"verifier": Coverage()},
    "guards": {"verifier": Guards()},
    "quarantine": {"admission": Quarantine()},
    "user scope": {"scope": "user"},
}


@dataclass(frozen=True)
class Row:
    """One defence against one level.

    Attributes:
        defence, level: by name.
        success: share of attempts after which the victim was served the planted answer.
        attempts: planted texts; victims and instructions for ``adaptive``.
        probes: questions asked, the attacker's own included.
        benign: share kept of the rewordings that hit without a defence.
        benign_pairs: how many those are.
    """

    defence: str
    level: str
    success: float
    attempts: int
    probes: int
    benign: float
    benign_pairs: int


class Remembering:
    """An encoder that encodes a text once: every defence sees the same texts."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.encoder_id, self.dim = encoder.encoder_id, encoder.dim
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def attack(
    encoder: Encoder,
    *,
    min_similarity: float = 0.8,
    defences: Sequence[str] = tuple(DEFENCES),
    levels: Sequence[str] = LEVELS,
    victims: int = len(QUESTIONS),
    budget: int = 24,
    seed: int = 0,
    benign: Sequence[tuple[str, str]] | None = None,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Every level against every defence.

    Args:
        encoder: of the attacked cache.
        min_similarity: its threshold.
        defences, levels: names, of `DEFENCES` and `LEVELS`.
        victims: how many questions are attacked.
        budget: probes of the adaptive attacker for a victim and an instruction.
        benign: pairs of questions that should share an answer; the kit's rewordings when None.
        progress: told each row.

    Raises RecipeError for unknown names.
    """
    for name, known in [(d, DEFENCES) for d in defences] + [(lv, LEVELS) for lv in levels]:
        if name not in known:
            raise RecipeError(f"no '{name}' in the kit; there are: {', '.join(known)}")
    encoder = Remembering(encoder)
    targets = QUESTIONS[: max(1, victims)]
    pairs = [pair for pair in benign or QUESTIONS if _kept(encoder, min_similarity, "none", *pair)]
    rows = []
    for defence in defences:
        kept = sum(_kept(encoder, min_similarity, defence, *pair) for pair in pairs)
        for level in levels:
            wins, attempts, probes = 0, 0, 0
            for number, (question, reworded) in enumerate(targets):
                for forms in INSTRUCTIONS:
                    planter = _Planter(encoder, min_similarity, defence, question)
                    if level == "adaptive":
                        outcomes = [
                            adaptive((question, reworded), forms, planter, budget) is not None
                        ]
                    elif level == "splice":
                        outcomes = [planter(t) for t in splice(question, forms[0], seed + number)]
                    else:
                        texts = concatenation(question, reworded, forms[0])
                        outcomes = [planter(text) for text in texts]
                    wins, attempts = wins + sum(outcomes), attempts + len(outcomes)
                    probes += planter.probes
            share = kept / len(pairs) if pairs else 1.0
            rows.append(Row(defence, level, wins / attempts, attempts, probes, share, len(pairs)))
            progress(rows[-1])
    return rows


def threshold_of(encoder: Encoder) -> float:
    """A usual threshold: 0.8 for meaning; spelling is farther apart, hence 0.5."""
    return 0.5 if encoder.encoder_id.startswith("ngram") else 0.8


class _Planter:
    """Mallory plants a text in a fresh cache; does the victim's question get her answer?"""

    def __init__(self, encoder: Encoder, tau: float, defence: str, question: str) -> None:
        self._make = lambda: _cache(encoder, tau, defence)
        self._question = question
        self.probes = 0

    def __call__(self, planted: str) -> bool:
        self.probes += 1
        cache = self._make()
        cache.store(_ask(planted), _say(CANARY), scope_id="mallory")
        lookup = cache.lookup(_ask(self._question), scope_id="victim")
        return lookup.entry is not None and CANARY.encode() in lookup.entry.response


def _kept(encoder: Encoder, tau: float, defence: str, question: str, reworded: str) -> bool:
    """Whether a rewording still hits an answer that was rightly put there.

    Who may share is not the question here: the answer is the asker's own.
    """
    cache = _cache(encoder, tau, defence)
    cache.store(_ask(question), _say("the answer"), scope_id="user")
    return cache.lookup(_ask(reworded), scope_id="user").hit


def _cache(encoder: Encoder, tau: float, defence: str) -> Answers:
    stages = {"scope": "global"} | DEFENCES[defence]
    return Answers(
        recipe="gptcache", encoder=encoder, min_similarity=tau, clock=ManualClock(),
        secret=b"kit", **stages,
    )  # fmt: skip


def shuffled(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Some of many benign pairs."""
    return random.Random(seed).sample(list(pairs), min(count, len(pairs)))


def _ask(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def _say(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}
