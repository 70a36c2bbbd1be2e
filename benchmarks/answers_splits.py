"""Which intents of Banking77 and CLINC150 train the pair verifier, choose it, and test it.

Fixed before anything was measured. Test queries come from the data sets' test splits, of intents
that neither training nor choosing has seen.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from answers_data import VOLATILE, Queries, banking77, clinc150, paraphrases, vectors_of
from recollect.answers.encoders import Encoder
from recollect.answers.learning.pair_examples import Corpus

# The answer depends on a slot (a dish, a time, a person, a place), in most queries of these too.
SLOTTED = (
    "pay_bill", "transfer", "bill_due", "min_payment", "routing", "order_checks",
    "spending_history", "interest_rate", "restaurant_reviews", "restaurant_reservation",
    "restaurant_suggestion", "recipe", "calories", "nutrition_info", "ingredients_list",
    "ingredient_substitution", "cook_time", "food_last", "how_busy", "confirm_reservation",
    "cancel_reservation", "accept_reservations", "meal_suggestion", "play_music",
    "update_playlist", "reminder", "reminder_update", "todo_list_update", "todo_list",
    "shopping_list_update", "shopping_list", "calendar", "calendar_update", "order", "smart_home",
    "uber", "traffic", "directions", "travel_suggestion", "travel_alert", "vaccines",
    "international_visa", "timezone", "plug_type", "book_flight", "book_hotel", "carry_on",
    "car_rental", "alarm", "timer", "make_call", "text", "spelling", "roll_dice",
    "meeting_schedule", "schedule_meeting", "pto_request", "change_speed", "change_volume",
    "change_language", "change_accent", "change_ai_name", "change_user_name", "share_location",
    "fun_fact", "tell_joke", "application_status", "credit_limit_change", "mpg", "gas",
    "travel_notification", "flip_coin", "user_name", "international_fees",
)  # fmt: skip
SHARES = {"test": 0.2, "held": 0.15}  # of the intents; the others train


def intents_of(part: str, intents: np.ndarray) -> set[str]:
    """The intents of ``train``, ``held`` (to choose by), both (``chosen``), or ``test``."""
    names = np.random.default_rng(11).permutation(np.unique(intents))
    tests = round(SHARES["test"] * len(names))
    held = tests + round(SHARES["held"] * len(names))
    parts = {"test": names[:tests], "held": names[tests:held], "train": names[held:]}
    return set((parts | {"chosen": names[tests:]})[part])


def fold_of(intent: str) -> int:
    """Which fifth of the intents one belongs to."""
    return zlib.crc32(intent.encode()) % 5


def corpora(folder: Path, encoder: Encoder, part: str) -> dict[str, Corpus]:
    """Queries of the part's intents, by data set; of the test splits where `part` is ``test``."""
    tests = part == "test"
    found = {
        "banking77": banking77(folder, "test" if tests else "train", encoder),
        "clinc150": clinc150(folder, ["test"] if tests else ["train", "val"], encoder),
    }
    return {name: corpus(queries, part) for name, queries in found.items()}


def reworded(folder: Path, encoder: Encoder) -> Corpus:
    """GPTCache's statements and their paraphrases, each pair an intent of its own: to train on."""
    one, other = paraphrases(folder)
    intents = np.array([f"statement {at}" for at in range(len(one))] * 2)
    texts = [*one, *other]
    return Corpus(texts, vectors_of(texts, encoder), intents, np.ones(len(texts), bool))


def part_of(corpus: Corpus, fold: int) -> Corpus:
    """The texts of a fold's intents."""
    rows = np.flatnonzero([fold_of(intent) == fold for intent in corpus.intents])
    texts = [corpus.texts[row] for row in rows]
    return Corpus(texts, corpus.vectors[rows], corpus.intents[rows], corpus.shared[rows])


def corpus(queries: Queries, part: str) -> Corpus:
    """Those of a part."""
    wanted = intents_of(part, queries.intents)
    rows = np.flatnonzero([intent in wanted for intent in queries.intents])
    taken = queries.take(rows)
    shared = ~np.isin(taken.intents, [*VOLATILE, *SLOTTED])
    return Corpus(taken.texts, taken.vectors, taken.intents, shared)


def benign_pairs(
    corpus: Corpus, min_similarity: float, count: int, seed: int, shared_only: bool
) -> list[tuple[str, str]]:
    """Random pairs of one intent at this cosine or nearer, as a cache would serve them."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[int, int]] = []
    for intent in np.unique(corpus.intents):
        rows = np.flatnonzero(corpus.intents == intent)
        if shared_only and not corpus.shared[rows[0]]:
            continue
        vectors = corpus.vectors[rows]
        near = np.argwhere(np.triu(vectors @ vectors.T >= min_similarity, 1))
        pairs += [(rows[i], rows[j]) for i, j in near[rng.permutation(len(near))[:60]]]
    chosen = rng.permutation(len(pairs))[:count]
    return [(corpus.texts[pairs[at][0]], corpus.texts[pairs[at][1]]) for at in chosen]


def wrong_pairs(
    corpus: Corpus, min_similarity: float, count: int, seed: int
) -> list[tuple[str, str]]:
    """Random queries and their nearest one of another intent, where it is this near or nearer."""
    pairs = []
    for at in np.random.default_rng(seed).permutation(len(corpus.texts)):
        other = corpus.intents != corpus.intents[at]
        cosines = np.where(other, corpus.vectors @ corpus.vectors[at], -1)
        nearest = int(cosines.argmax())
        if cosines[nearest] >= min_similarity:
            pairs.append((corpus.texts[at], corpus.texts[nearest]))
    return pairs[:count]
