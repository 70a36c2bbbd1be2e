"""What words and the contrast guard's rules say of two texts, as numbers for a trained judge."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from recollect.answers.verifiers.contrast import Contrast, aligned
from recollect.answers.verifiers.words import read

RULED = ("number", "name", "negation", "opposite", "exclusive", "role", "manner", "substitution",
         "addition", "surplus", "stray")  # fmt: skip
FEATURES = (*RULED, "equal", "replaced", "one_sided", "content_shared", "less_left", "more_left",
            "shorter", "longer", "numbers", "longest_run", "less_meant", "more_meant",
            "turned", "one_by")  # fmt: skip
LONGEST = 120  # words; longer texts are compared by the trained part alone


def pair_features(one: str, other: str) -> list[float]:
    """(F,) numbers in the order of `FEATURES`, the same for either order of the texts."""
    one, other = sorted((one, other))
    a, b = read(one), read(other)
    lengths = sorted((len(a.tokens), len(b.tokens)))
    if lengths[1] > LONGEST:
        return [0.0] * len(FEATURES)
    rules = Counter(difference.rule for difference in Contrast().differences(one, other))
    equal, changes = aligned(a, b)
    replaced = sum(bool(gone and new) for gone, new in changes)
    runs = [len(gone or new) for gone, new in changes if not (gone and new)]
    only_a, only_b = (
        list((Counter(x.content) - Counter(y.content)).elements()) for x, y in ((a, b), (b, a))
    )
    left = sorted((len(only_a), len(only_b)))
    typed = sum(any(is_typo(word, other) for other in only_b) for word in only_a)
    union = len(set(a.content) | set(b.content))
    return [
        *(float(min(rules[rule], 3)) for rule in RULED),
        equal,
        float(replaced),
        float(len(runs)),
        len(set(a.content) & set(b.content)) / max(1, union),
        *(math.log1p(count) for count in left),
        *(math.log1p(length) for length in lengths),
        float(a.digits == b.digits),
        float(max(runs, default=0)),
        *(math.log1p(max(0, count - typed)) for count in left),
        float(turned(a.content, b.content)),
        float(("by" in a.tokens) != ("by" in b.tokens)),
    ]


def is_typo(one: str, other: str) -> bool:
    """Whether two words of five letters or more differ in one letter, or in the order of two."""
    if abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < 5:
        return False
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    a, b = one[start:], other[start:]
    if len(a) != len(b):
        return a[1:] == b if len(a) > len(b) else b[1:] == a
    return a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def turned(one: Sequence[str], other: Sequence[str]) -> float:
    """Of neighbours among the shared words, the share that stand the other way round."""
    places = {word: at for at, word in enumerate(other)}
    shared = [places[word] for word in dict.fromkeys(one) if word in places]
    pairs = list(itertools.pairwise(shared))
    return sum(left > right for left, right in pairs) / max(1, len(pairs))
