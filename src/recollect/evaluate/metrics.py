"""How right an answer is, graded: a tiny model that loses one digit of five is not all wrong.

All four measures come from one teacher-forced pass, in which the right answer so far is given and
every next token is predicted. Greedy decoding would write the answer exactly when all of them are
the likeliest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Metric:
    """One measure as reports show it.

    Attributes:
        name, title, short: in records, on charts, in tables.
        higher_is_better: the direction.
        bounds: its natural range; None where it has no end.
        hint: one line that explains it.
    """

    name: str
    title: str
    short: str
    higher_is_better: bool
    bounds: tuple[float | None, float | None]
    hint: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tokens", "Answer tokens right", "Tokens right", True, (0.0, 1.0),
               "share of answer tokens that greedy decoding gets right, given those before"),
        Metric("exact", "Exact answers", "Exact", True, (0.0, 1.0),
               "share of answers in which every token is right"),
        Metric("logprob", "Log-probability", "Log-prob.", True, (None, 0.0),
               "mean log-probability of the right answer's tokens, in nats"),
        Metric("kl", "Divergence from the full cache", "KL to full", False, (0.0, None),
               "mean KL divergence of the next-token distribution from the full cache's, in nats"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Measures of one answer, or the mean over the answers of a case.

    Attributes: as in `METRICS`; `exact` is None where it means nothing.
    """

    tokens: float
    exact: float | None
    logprob: float
    kl: float

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def score(
    logits: torch.Tensor,
    answer: torch.Tensor,
    reference: torch.Tensor,
    scored: torch.Tensor,
    *,
    exact: bool = True,
) -> Score:
    """Measures of one answer.

    Args:
        logits: (A, V) that predict each answer token.
        answer: (A,) the right tokens.
        reference: (A, V) the full cache's logits.
        scored: (A,) which tokens count.
        exact: whether an exact answer means anything.
    """
    logits, reference, answer = logits[scored], reference[scored], answer[scored]
    ours = logits.float().log_softmax(-1)
    theirs = reference.float().log_softmax(-1)
    right = (ours.argmax(-1) == answer).float()
    kl = (theirs.exp() * (theirs - ours)).sum(-1).clamp_min(0)
    return Score(
        tokens=right.mean().item(),
        exact=right.min().item() if exact else None,
        logprob=ours.gather(-1, answer[:, None]).mean().item(),
        kl=kl.mean().item(),
    )


def mean(scores: list[Score]) -> Score:
    """The mean over several answers of one case."""
    exact = [s.exact for s in scores if s.exact is not None]
    count = len(scores)
    return Score(
        tokens=sum(s.tokens for s in scores) / count,
        exact=sum(exact) / len(exact) if exact else None,
        logprob=sum(s.logprob for s in scores) / count,
        kl=sum(s.kl for s in scores) / count,
    )
