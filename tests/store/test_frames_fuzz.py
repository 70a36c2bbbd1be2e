"""Some thousands of the hostile frames that benchmarks/store_wire.py --fuzz reads a million of."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hostile import attack, damaged, originals


def test_hostile_frames_are_refused_or_decode_to_what_they_claim():
    verdicts = Counter(attack(seed) for seed in range(6000))
    assert verdicts["refused"] > 4000
    assert verdicts["forged"] > 100  # the forgeries are good enough to get past the checksums


def test_the_damage_is_real():
    import random

    changed = sum(
        damaged(originals()[0], random.Random(seed)) != originals()[0] for seed in range(200)
    )
    assert changed > 150
