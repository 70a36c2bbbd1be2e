"""The examples of all partitions: kept by what they are worth, refined when machines are idle.

An example's value counts the requests a cheap model answered well with its help; its gain says how
much is lost where it is used and does not suffice. Both fade, so what is no longer used goes.
IC-Cache, arXiv 2501.12689.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from recollect.answers.clock import Clock
from recollect.answers.examples import knapsack
from recollect.answers.examples.example import Example, Found
from recollect.answers.index.base import VectorIndex
from recollect.errors import RecipeError

HOUR = 3600.0
AFTER_EVICTION = 0.9  # of the capacity is filled, so that not every new example evicts


@dataclass(frozen=True)
class ManagerPolicy:
    """What is kept and what is replayed. Quality is in [0, 1].

    Attributes:
        capacity_bytes: plain text of all examples.
        partition_bytes: plain text of one partition's examples.
        decay: what is left of value and gain after an hour.
        newcomer: value of an example that was never used.
        success: quality from which a request counts as answered well.
        gain_smoothing: share of a new use in the running mean of the gain.
        replay_above: gain from which an answer is worth making again.
        most_replays: of one example.
    """

    capacity_bytes: int = 20_000_000
    partition_bytes: int = 5_000_000
    decay: float = 0.9
    newcomer: float = 1.0
    success: float = 0.7
    gain_smoothing: float = 0.3
    replay_above: float = 0.05
    most_replays: int = 5

    def __post_init__(self) -> None:
        if not (0 < self.decay <= 1 and 0 < self.gain_smoothing <= 1):
            raise RecipeError("a manager takes decay and gain_smoothing above 0, at most 1")
        if min(self.capacity_bytes, self.partition_bytes, self.most_replays) < 0:
            raise RecipeError("a manager takes no negative numbers")


@dataclass
class Worth:
    """What use has shown of an example, as of `at` (seconds).

    Attributes:
        value: decayed count of requests that went well with it.
        gain: decayed running mean of (1 - quality) times the cost of the model that was asked.
        uses, replays: counts since it was added.
    """

    value: float
    gain: float
    uses: int
    replays: int
    at: float


@dataclass
class _Held:
    """An example with its unit vectors (D,) and its worth."""

    example: Example
    query_vector: np.ndarray
    response_vector: np.ndarray
    worth: Worth


class ExampleManager:
    """Keeps examples by partition. Not safe to share by threads.

    Arguments:
        new_index: makes an empty index, one for each partition.
    """

    def __init__(
        self, policy: ManagerPolicy, clock: Clock, new_index: Callable[[], VectorIndex]
    ) -> None:
        self.policy = policy
        self._clock, self._new_index = clock, new_index
        self._held: dict[int, _Held] = {}
        self._indices: dict[tuple[str, ...], VectorIndex] = {}
        self._by_query: dict[tuple[tuple[str, ...], str], int] = {}
        self._bytes: dict[tuple[str, ...], int] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Example]:
        return (held.example for held in self._held.values())

    @property
    def size(self) -> int:
        """Bytes of plain text of all examples."""
        return sum(list(self._bytes.values()))  # a copy: others may write meanwhile

    def add(
        self, example: Example, query_vector: np.ndarray, response_vector: np.ndarray
    ) -> tuple[int | None, list[int]]:
        """Keep an example. Returns its id (None: the query is known) and the ids that had to go."""
        if (example.partition, example.query) in self._by_query:
            return None, []
        example = replace(example, id=self._next)
        self._next += 1
        worth = Worth(self.policy.newcomer, 0.0, 0, 0, self._clock.now())
        self._insert(_Held(example, query_vector, response_vector, worth))
        return example.id, self._evict(example.partition)

    def find(self, partition: tuple[str, ...], vector: np.ndarray, count: int) -> list[Found]:
        """The `count` examples of a partition nearest to a unit vector (D,), nearest first."""
        if partition not in self._indices or count == 0:
            return []
        near = self._indices[partition].search(vector, count)
        held = [self._held[one.entry_id] for one in near if one.entry_id in self._held]
        return [Found(one.example, one.query_vector, one.response_vector) for one in held]

    def used(self, example_ids: Sequence[int], quality: float, cost: float) -> None:
        """A model of this cost answered with these examples, and the answer was worth `quality`."""
        smoothing = self.policy.gain_smoothing
        for example_id in example_ids:
            if example_id not in self._held:
                continue  # evicted while the model was answering
            worth = self.worth(example_id)
            worth.gain += smoothing * ((1 - quality) * cost - worth.gain)
            worth.value += (quality >= self.policy.success) / len(example_ids)
            worth.uses += 1

    def worth(self, example_id: int) -> Worth:
        """Value and gain of an example, faded to now."""
        worth, now = self._held[example_id].worth, self._clock.now()
        left = self.policy.decay ** (max(0.0, now - worth.at) / HOUR)
        worth.value, worth.gain, worth.at = worth.value * left, worth.gain * left, now
        return worth

    def due(self) -> list[Example]:
        """Examples whose answer is worth making again, the greatest expected gain first."""
        worths = {example_id: self.worth(example_id) for example_id in self._held}
        due = [
            (-worth.gain, example_id)
            for example_id, worth in worths.items()
            if worth.gain > self.policy.replay_above and worth.replays < self.policy.most_replays
        ]
        return [self._held[example_id].example for _, example_id in sorted(due)]

    def replayed(self, example_id: int, better: Example | None, vector: np.ndarray | None) -> bool:
        """An answer was made again; `better` is the example with the new one, if it won.

        Returns whether the example is still there. Its gain has to be earned again.
        """
        held = self._held.get(example_id)
        if held is None:
            return False
        worth = self.worth(example_id)
        worth.gain = 0.0
        worth.replays += 1
        if better is not None and vector is not None:
            partition = held.example.partition
            self._bytes[partition] += better.size - held.example.size
            held.example, held.response_vector = better, vector
        return True

    def evict(self) -> list[int]:
        """Bring every partition and all together within their bytes; returns the ids that went."""
        return [gone for partition in list(self._bytes) for gone in self._evict(partition)]

    def remove(self, example_ids: Iterable[int]) -> None:
        """Forget examples; an id that is not there is no error."""
        for example_id in example_ids:
            held = self._held.pop(example_id, None)
            if held is None:
                continue
            partition = held.example.partition
            self._indices[partition].remove(example_id)
            self._bytes[partition] -= held.example.size
            del self._by_query[partition, held.example.query]
            if not self._bytes[partition]:
                del self._bytes[partition], self._indices[partition]

    def ids(self, partition: tuple[str, ...]) -> list[int]:
        """Of the examples of one partition."""
        return [key for key, held in self._held.items() if held.example.partition == partition]

    def state(self) -> dict[str, Any]:
        """Everything but the vectors, for JSON; in the order of `vectors`."""
        rows = [[asdict(one.example), asdict(one.worth)] for one in self._held.values()]
        return {"next": self._next, "examples": rows}

    def vectors(self, dim: int) -> np.ndarray:
        """Vectors (N, 2, D) float32 of queries and responses."""
        pairs = [(one.query_vector, one.response_vector) for one in self._held.values()]
        return np.array(pairs, np.float32).reshape(-1, 2, dim)

    def restore(self, state: Mapping[str, Any], vectors: np.ndarray) -> None:
        """Go on from a `state`, with nothing held yet."""
        for (example, worth), (query, response) in zip(state["examples"], vectors, strict=True):
            example = Example(**{**example, "partition": tuple(example["partition"])})
            self._insert(_Held(example, query, response, Worth(**worth)))
        self._next = int(state["next"])

    def _insert(self, held: _Held) -> None:
        example = held.example
        if example.partition not in self._indices:
            self._indices[example.partition] = self._new_index()
            self._bytes[example.partition] = 0
        self._indices[example.partition].add(example.id, held.query_vector)
        self._held[example.id] = held
        self._by_query[example.partition, example.query] = example.id
        self._bytes[example.partition] += example.size

    def _evict(self, partition: tuple[str, ...]) -> list[int]:
        gone = []
        if self._bytes.get(partition, 0) > self.policy.partition_bytes:
            gone += self._shrink(self.ids(partition), self.policy.partition_bytes)
        if self.size > self.policy.capacity_bytes:
            gone += self._shrink(list(self._held), self.policy.capacity_bytes)
        return gone

    def _shrink(self, example_ids: Sequence[int], capacity: int) -> list[int]:
        values = [self.worth(key).value for key in example_ids]
        weights = [max(1, self._held[key].example.size) for key in example_ids]
        kept = set(knapsack.keep(values, weights, int(AFTER_EVICTION * capacity)))
        gone = [key for at, key in enumerate(example_ids) if at not in kept]
        self.remove(gone)
        return gone
