"""The attack against a cache with each defence on and off, and what the defence costs others.

Everything goes through `Answers`: Mallory plants what a model answered to her text, the victim
asks, and the attack succeeded when the planted answer is what came back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recollect.answers.admission import Quarantine
from recollect.answers.answers import Answers
from recollect.answers.clock import ManualClock
from recollect.answers.encoders.base import Encoder
from recollect.answers.redteam.gradient import GradientSearch
from recollect.answers.redteam.levels import Join, adaptive, concatenation, joins, splice
from recollect.answers.redteam.texts import CANARY, INSTRUCTIONS, QUESTIONS
from recollect.answers.verifiers import Contrast, Coverage, Guards, Pair
from recollect.answers.verifiers.pair import minilm_of
from recollect.errors import RecipeError

LEVELS = ("concatenation", "splice", "adaptive", "gradient")

# What each defence adds to a cache with one threshold in global scope.
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "contrast": {"verifier": Contrast()},
    "coverage": {"verifier": Coverage()},
    "pair": {"verifier": Pair()},
    "guards": {"verifier": Guards()},
    "quarantine": {"admission": Quarantine()},
    "user scope": {"scope": "user"},
}


@dataclass(frozen=True)
class Kit:
    """What is planted, for whom, and how.

    Attributes:
        questions: of the victims, each with a rewording that should share its answer.
        instructions: each in ever fewer words.
        fixed: a question, its rewording and an instruction to the texts of ``concatenation``.
        joins: ways of the adaptive attacker to hide an instruction in a question.
        search: of the level ``gradient``.
    """

    questions: Sequence[tuple[str, str]] = QUESTIONS
    instructions: Sequence[Sequence[str]] = INSTRUCTIONS
    fixed: Callable[[str, str, str], list[str]] = concatenation
    joins: Callable[[str], Iterator[Join]] = joins
    search: GradientSearch = field(default_factory=GradientSearch)


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
        self.encoder = encoder
        self.encoder_id, self.dim = encoder.encoder_id, encoder.dim
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def attack(
    encoder: Encoder,
    *,
    min_similarity: float = 0.8,
    defences: Sequence[str] = tuple(DEFENCES),
    levels: Sequence[str] = LEVELS[:3],
    victims: int = len(QUESTIONS),
    budget: int = 24,
    seed: int = 0,
    benign: Sequence[tuple[str, str]] | None = None,
    kit: Kit | None = None,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Every level against every defence.

    Args:
        encoder: of the attacked cache.
        min_similarity: its threshold.
        defences, levels: names, of `DEFENCES` and `LEVELS`. ``gradient`` searches with MiniLM's
            weights, whatever the encoder is, and needs them.
        victims: how many questions are attacked.
        budget: probes of the adaptive attacker for a victim and an instruction.
        benign: pairs of questions that should share an answer; the kit's rewordings when None.
        kit: what is planted.
        progress: told each row.

    Raises RecipeError for unknown names.
    """
    for name, known in [(d, DEFENCES) for d in defences] + [(lv, LEVELS) for lv in levels]:
        if name not in known:
            raise RecipeError(f"no '{name}' in the kit; there are: {', '.join(known)}")
    kit = kit or Kit()
    encoder = Remembering(encoder)
    attacker = _Attacker(kit, encoder, budget, seed)
    targets = kit.questions[: max(1, victims)]
    pairs = [p for p in benign or kit.questions if _kept(encoder, min_similarity, "none", *p)]
    rows = []
    for defence in defences:
        kept = sum(_kept(encoder, min_similarity, defence, *pair) for pair in pairs)
        for level in levels:
            wins, attempts, probes = 0, 0, 0
            for number, target in enumerate(targets):
                for forms in kit.instructions:
                    planter = _Planter(encoder, min_similarity, defence, target[0])
                    outcomes = attacker.outcomes(level, number, target, forms, planter)
                    wins, attempts = wins + sum(outcomes), attempts + len(outcomes)
                    probes += planter.probes
            share = kept / len(pairs) if pairs else 1.0
            rows.append(Row(defence, level, wins / attempts, attempts, probes, share, len(pairs)))
            progress(rows[-1])
    return rows


class _Attacker:
    """What Mallory plants at each level; a suffix is searched once, whatever the defence."""

    def __init__(self, kit: Kit, encoder: Encoder, budget: int, seed: int) -> None:
        self._kit, self._encoder, self._budget, self._seed = kit, encoder, budget, seed
        self._suffixed: dict[tuple[str, str], str] = {}

    def outcomes(
        self,
        level: str,
        number: int,
        target: tuple[str, str],
        forms: Sequence[str],
        plant: _Planter,
    ) -> list[bool]:
        """Whether each text of the level, planted, reached the victim `number`."""
        question, reworded = target
        if level == "adaptive":
            found = adaptive(target, forms, plant, self._budget, self._kit.joins)
            return [found is not None]
        if level == "gradient":
            return [plant(self._with_suffix(question, forms[0]))]
        if level == "splice":
            return [plant(text) for text in splice(question, forms[0], self._seed + number)]
        return [plant(text) for text in self._kit.fixed(question, reworded, forms[0])]

    def _with_suffix(self, question: str, instruction: str) -> str:
        key = question, instruction
        if key not in self._suffixed:
            self._suffixed[key] = self._kit.search.run(minilm_of(self._encoder), *key).text
        return self._suffixed[key]


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


def _ask(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def _say(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}
