"""The gradient level: a suffix that pulls the key of an instruction onto a victim's question.

Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043) on the cosine, as CacheAttack (Zhang
et al. 2026, arXiv 2601.23088) uses it, without its perplexity term. White box: it reads the weights
of all-MiniLM-L6-v2; against another encoder it is a test of transfer. Needs the extra ``answers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recollect.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from recollect.answers.encoders.minilm import MiniLMEncoder


class Suffixed(NamedTuple):
    """A text to plant, its cosine to the victim's question, and how many texts were encoded."""

    text: str
    cosine: float
    encoded: int


@dataclass(frozen=True)
class GradientSearch:
    """How long an attacker with the weights searches.

    Attributes:
        tokens: word pieces of the suffix.
        steps: at most; each encodes `candidates` texts and goes back through the model once.
        candidates: single swaps tried a step.
        top: swaps with the best gradient that are drawn from, at every place.
        target: cosine at which the search ends; texts beyond it hit.
        seed: of the draws.
    """

    tokens: int = 16
    steps: int = 30
    candidates: int = 48
    top: int = 64
    target: float = 0.85
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.tokens, self.candidates, self.top) < 1 or self.steps < 0:
            raise RecipeError("a gradient search needs tokens, candidates and top >= 1")

    def run(self, encoder: MiniLMEncoder, question: str, instruction: str) -> Suffixed:
        """The instruction with a suffix; the suffix starts as the question's own words.

        The suffix is made of whole English-looking words, and only texts that are read back as
        the same word pieces count.
        """
        import torch

        space = _Space(encoder)
        rng = np.random.default_rng(self.seed)
        goal = torch.from_numpy(encoder.encode([question])[0])
        fixed = space.pieces(instruction)
        suffix = space.start(question, self.tokens, rng)
        best, encoded = space.cosines([[*fixed, *suffix]], goal)[0], 1
        for _ in range(self.steps):
            if best >= self.target:
                break
            promising = space.promising(fixed, suffix, goal, self.top)  # (tokens, top)
            trials = []
            for place in rng.integers(self.tokens, size=self.candidates):
                trial = list(suffix)
                trial[place] = int(rng.choice(promising[place]))
                trials.append(trial)
            cosines = space.cosines([[*fixed, *trial] for trial in trials], goal)
            encoded += len(trials) + 1
            for at in np.argsort(cosines)[::-1]:
                if cosines[at] <= best:
                    break
                text = space.text(instruction, trials[at])
                if space.pieces(text) == [*fixed, *trials[at]]:
                    best, suffix = float(cosines[at]), trials[at]
                    break
        return Suffixed(space.text(instruction, suffix), float(best), encoded)


class _Space:
    """Word pieces, their embeddings, and the way from them to a sentence vector and back."""

    def __init__(self, encoder: MiniLMEncoder) -> None:
        self._tokenizer, self._model = encoder.loaded()
        self._words = _whole_words(encoder)
        self._table = self._model.embeddings.word_embeddings.weight.detach()

    def pieces(self, text: str) -> list[int]:
        """Word pieces of a text."""
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def text(self, instruction: str, suffix: list[int]) -> str:
        """The instruction and the words of the suffix."""
        return f"{instruction} {' '.join(self._tokenizer.convert_ids_to_tokens(suffix))}"

    def start(self, question: str, tokens: int, rng: np.random.Generator) -> list[int]:
        """The question's whole words, again and again or cut off, to a length."""
        own = [piece for piece in self.pieces(question) if piece in set(self._words.tolist())]
        own = own or [int(rng.choice(self._words))]
        return [own[at % len(own)] for at in range(tokens)]

    def cosines(self, rows: list[list[int]], goal: torch.Tensor) -> np.ndarray:
        """Cosines (B,) of texts of equal length to the goal."""
        import torch

        with torch.inference_mode():
            return (self._sentence(self._table[self._framed(rows)]) @ goal).numpy()

    def promising(
        self, fixed: list[int], suffix: list[int], goal: torch.Tensor, top: int
    ) -> np.ndarray:
        """For each place of the suffix the words (tokens, top) that raise the cosine most, to first
        order."""
        embedded = self._table[self._framed([[*fixed, *suffix]])].clone().requires_grad_(True)
        (self._sentence(embedded) @ goal).sum().backward()
        assert embedded.grad is not None
        gradient = embedded.grad[0, 1 + len(fixed) : -1]  # between the words and [SEP]
        gains = gradient @ self._table[self._words].T
        return self._words[gains.topk(min(top, len(self._words))).indices.numpy()]

    def _framed(self, rows: list[list[int]]) -> Any:
        import torch

        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        return torch.tensor([[start, *row, end] for row in rows])

    def _sentence(self, embedded: Any) -> Any:
        import torch

        hidden = self._model(inputs_embeds=embedded).last_hidden_state
        return torch.nn.functional.normalize(hidden.mean(1), dim=-1)


@lru_cache(maxsize=2)
def _whole_words(encoder: MiniLMEncoder) -> np.ndarray:
    """Ids of the pieces that are ASCII words of three letters or more."""
    tokenizer, _ = encoder.loaded()
    vocabulary = tokenizer.get_vocab()
    return np.array(
        sorted(i for w, i in vocabulary.items() if w.isascii() and w.isalpha() and len(w) > 2)
    )
