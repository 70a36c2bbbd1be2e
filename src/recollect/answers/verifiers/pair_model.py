"""A small trained model over two questions' word pieces: does one answer serve both?

Every word piece of either text looks for its counterparts in the other (soft alignment, as in
Parikh et al. 2016, arXiv 1606.01933); what is left over, what changed, and what the contrast
guard's rules say go into a small network. The encoder stays as it is, so that what has to be kept
is a few hundred kilobytes. Needs torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from recollect.answers.encoders.minilm import MiniLMEncoder
from recollect.answers.verifiers.pair_features import FEATURES, pair_features
from recollect.errors import RecipeError, StoreError

SCHEMA = "recollect-pair-verifier-2"
SHARPNESS = 12.0  # of the soft alignment: weights exp(12 cos)


@dataclass(frozen=True)
class PairShape:
    """Size of the network.

    Attributes:
        width: of the projected word pieces, contextual and plain ones each.
        hidden: of the layer that compares a piece with its counterpart.
        members: networks of this size from different starts; their logits are averaged.
        rules: whether the features of words and rules are used.
    """

    width: int = 48
    hidden: int = 96
    members: int = 1
    rules: bool = True


class Pieces(NamedTuple):
    """One text: ids (T,) of its word pieces and their contextual vectors (T, D) float16."""

    ids: np.ndarray
    vectors: np.ndarray


class PairModel(nn.Module):
    """Logits of pairs; the same for either order of the two texts.

    Arguments:
        encoder: whose word pieces are compared; its digest is kept with what is trained.
        shape: of the network.
        threshold: probability from which a pair is accepted.
    """

    centre: torch.Tensor  # of the features, in training
    spread: torch.Tensor

    def __init__(
        self, encoder: MiniLMEncoder, shape: PairShape = PairShape(), threshold: float = 0.5
    ) -> None:
        super().__init__()
        self.encoder, self.shape, self.threshold = encoder, shape, threshold
        self._lately = lru_cache(maxsize=4096)(lambda text: self.read([text])[0])
        _, host = encoder.loaded()
        self._plain = host.embeddings.word_embeddings.weight.detach()
        extra = len(FEATURES) if shape.rules else 0
        self.register_buffer("centre", torch.zeros(extra))
        self.register_buffer("spread", torch.ones(extra))
        self.members = nn.ModuleList(
            _Member(encoder.dim, shape.width, shape.hidden, extra) for _ in range(shape.members)
        )

    def read(self, texts: Sequence[str]) -> list[Pieces]:
        """Word pieces of texts, from the frozen encoder."""
        return [
            Pieces(ids, vectors.astype(np.float16)) for ids, vectors in self.encoder.tokens(texts)
        ]

    def forward(
        self, first: Sequence[Pieces], second: Sequence[Pieces], features: np.ndarray
    ) -> torch.Tensor:
        """Logits (B,); `features` (B, F) as `pair_features` gives them."""
        return self.opinions(first, second, features).mean(0)

    def opinions(
        self, first: Sequence[Pieces], second: Sequence[Pieces], features: np.ndarray
    ) -> torch.Tensor:
        """Logits (members, B) of each member."""
        a, b = self._side(first), self._side(second)
        cosines = a.unit @ b.unit.mT
        plain = a.plain @ b.plain.mT
        same = (a.ids[:, :, None] == b.ids[:, None, :]).float()
        both = (a.mask[:, :, None] * b.mask[:, None, :]) == 0
        scores = (cosines + plain).masked_fill(both, -1e4) / 2
        there = _Likeness.of(scores, cosines, plain, same)
        back = _Likeness.of(scores.mT, cosines.mT, plain.mT, same.mT)
        known = [(a.sentence * b.sentence).sum(-1, keepdim=True)]
        if self.shape.rules:
            known.append((torch.as_tensor(features).float() - self.centre) / self.spread)
        evidence = torch.cat(known, -1)
        return torch.stack([member(a, b, there, back, evidence) for member in self.members])

    def alone(self) -> Iterator[PairModel]:
        """Each member as a model of its own, which shares its weights."""
        for member in self.members:
            single = PairModel(self.encoder, replace(self.shape, members=1), self.threshold)
            single.centre, single.spread = self.centre, self.spread
            single.members = nn.ModuleList([member])
            yield single.eval()

    def probability(self, one: str, other: str) -> float:
        """That one answer serves both; texts read lately are not read again."""
        first, second = self._lately(one), self._lately(other)
        if not (len(first.ids) and len(second.ids)):
            return 0.0
        features = np.array([pair_features(one, other)], np.float32)
        with torch.inference_mode():
            return float(torch.sigmoid(self([first], [second], features))[0])

    @torch.inference_mode()
    def probabilities(self, pairs: Sequence[tuple[str, str]], batch: int = 64) -> list[float]:
        """That one answer serves both, for each pair.

        A text beyond the encoder's window cannot be read whole: its pair gets 0.
        """
        self.eval()
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        read = dict(zip(texts, self.read(texts), strict=True))
        found: list[float] = []
        for start in range(0, len(pairs), batch):
            rows = pairs[start : start + batch]
            features = np.array([pair_features(*pair) for pair in rows], np.float32)
            sides = ([read[pair[side]] for pair in rows] for side in (0, 1))
            chances = torch.sigmoid(self(*sides, features)).tolist()
            whole = [len(read[a].ids) and len(read[b].ids) for a, b in rows]
            found += [c if w else 0.0 for c, w in zip(chances, whole, strict=True)]
        return found

    def save(self, path: str | Path) -> None:
        """Write what was trained as safetensors, in half precision, with what it is."""
        tensors = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        about = {"schema": SCHEMA, "encoder": self.encoder.weights_digest}
        about |= {"threshold": repr(self.threshold), "shape": json.dumps(asdict(self.shape))}
        about |= {"features": " ".join(FEATURES)}
        save_file(tensors, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path, encoder: MiniLMEncoder) -> PairModel:
        """Read a verifier that was trained over this encoder.

        Raises StoreError when the file is missing or something else, RecipeError when it was
        trained over other weights.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("schema") != SCHEMA or about.get("features") != " ".join(FEATURES):
                    raise StoreError(f"{path} is no pair verifier of this version; train it again")
                if about["encoder"] != encoder.weights_digest:
                    raise RecipeError(
                        f"the pair verifier was trained over weights {about['encoder']}, "
                        f"not {encoder.weights_digest}; train it again"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, FileNotFoundError) as error:
            raise StoreError(f"cannot read a pair verifier from {path}: {error}") from error
        model = cls(encoder, PairShape(**json.loads(about["shape"])), float(about["threshold"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise StoreError(f"{path} lacks parts of a pair verifier, or holds others") from error
        return model.eval()

    def _side(self, texts: Sequence[Pieces]) -> _Side:
        """One text of each pair, padded."""
        width = max(1, *(len(text.ids) for text in texts))
        ids = torch.full((len(texts), width), -1)
        vectors = torch.zeros(len(texts), width, self.encoder.dim)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.from_numpy(text.ids)
            vectors[row, : len(text.ids)] = torch.from_numpy(text.vectors).float()
        mask = (ids >= 0).float()
        plain = self._plain[ids.clamp(min=0)] * mask[..., None]
        sentence = nn.functional.normalize(vectors.sum(1), dim=-1)
        unit = nn.functional.normalize(vectors, dim=-1)
        return _Side(ids, mask, unit, nn.functional.normalize(plain, dim=-1), sentence)


class _Side(NamedTuple):
    """One text of each pair: ids and mask (B, T), unit vectors (B, T, D), sentences (B, D)."""

    ids: torch.Tensor
    mask: torch.Tensor
    unit: torch.Tensor
    plain: torch.Tensor
    sentence: torch.Tensor


class _Likeness(NamedTuple):
    """Of each piece of a text: weights (B, T, S) of its counterparts, and how like they are."""

    weights: torch.Tensor
    tops: torch.Tensor  # (B, T, 4)

    @classmethod
    def of(cls, scores: torch.Tensor, *likeness: torch.Tensor) -> _Likeness:
        """From scores of alignment and matrices (B, T, S) of which the last says equal ids."""
        weights = torch.softmax(SHARPNESS * scores, -1)
        tops = [matrix.amax(-1) for matrix in likeness]
        return cls(weights, torch.stack([*tops, (weights * likeness[-1]).sum(-1)], -1))


class _Member(nn.Module):
    """One network: each piece beside its counterpart, pooled, judged with what else is known."""

    def __init__(self, dim: int, width: int, hidden: int, extra: int) -> None:
        super().__init__()
        self.context = nn.Linear(dim, width, bias=False)
        self.plain = nn.Linear(dim, width, bias=False)
        self.compare = nn.Sequential(
            nn.Linear(8 * width + 4, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.judge = nn.Sequential(
            nn.Linear(6 * hidden + 1 + extra, hidden), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(
        self, a: _Side, b: _Side, there: _Likeness, back: _Likeness, evidence: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B,). Sums and products of both sides do not depend on which text comes first."""
        one, other = (torch.cat([self.context(s.unit * 4), self.plain(s.plain * 4)], -1)
                      for s in (a, b))  # fmt: skip
        compared = self._compared(one, other, there), self._compared(other, one, back)
        parts = []
        for pool in (_total, _mean, _top):
            left, right = pool(compared[0], a.mask), pool(compared[1], b.mask)
            parts += [left + right, left * right]
        return self.judge(torch.cat([*parts, evidence], -1))[:, 0]

    def _compared(
        self, own: torch.Tensor, others: torch.Tensor, likeness: _Likeness
    ) -> torch.Tensor:
        """Each piece beside its counterpart: (B, T, hidden)."""
        counterpart = likeness.weights @ others
        gap = (own - counterpart).abs()
        return self.compare(
            torch.cat([own, counterpart, gap, own * counterpart, likeness.tops], -1)
        )


def _total(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask[..., None]).sum(1) / 8


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _top(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(mask[..., None] == 0, -1.0).amax(1)
