"""Results shared by functions that behave alike: a function's key is what it does on probe inputs.

The candidate runs on a few fixed inputs; its outputs, rounded, and the exceptions it raises are
hashed; whoever has the same hash gets the stored result. "Unified Functional Hashing in Automatic
Machine Learning" (Gillard et al., arXiv 2302.05433).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import math
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from recollect.answers.answers import Answers
from recollect.answers.canonical import canonical
from recollect.errors import RecipeError

P = ParamSpec("P")
T = TypeVar("T")

_VERSION = "recollect.functional.1"


class FunctionalCache:
    """Results keyed by behaviour on probe inputs.

    Two functions that agree on every probe share results even where they would differ elsewhere:
    choose probes that tell apart what must not be mixed, and set `recheck` to measure how often
    that goes wrong (`false_merges`). Outputs that agree to within `tolerance` may still fall on
    two sides of a rounding step: then they do not share.

    Args:
        probes: argument tuples, or a function that makes them from a seeded `random.Random`.
        tolerance: outputs are rounded to multiples of it; 0 compares them exactly.
        seed: of the probes and of rechecking.
        version: raise it when what the functions depend on changed.
        recheck: share of hits (0 to 1) that are computed again and compared.
        answers: where results are kept; in memory when None.
        scope_id: whose results they are.

    Raises RecipeError without probes or for arguments out of range.
    """

    def __init__(
        self,
        probes: Sequence[tuple[Any, ...]] | Callable[[random.Random], Iterable[tuple[Any, ...]]],
        *,
        tolerance: float = 1e-9,
        seed: int = 0,
        version: str = "",
        recheck: float = 0.0,
        answers: Answers | None = None,
        scope_id: str = "functions",
    ) -> None:
        self._probes = list(probes(random.Random(seed)) if callable(probes) else probes)
        if not self._probes or not all(isinstance(probe, tuple) for probe in self._probes):
            raise RecipeError("give probes as tuples of arguments, at least one: [(1,), (2,)]")
        if not 0 <= tolerance < math.inf or not 0 <= recheck <= 1:
            raise RecipeError("a functional cache takes tolerance >= 0 and recheck from 0 to 1")
        self._tolerance, self._recheck = tolerance, recheck
        self._answers = answers if answers is not None else Answers()
        self._scope_id = scope_id
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._about = [_VERSION, version, seed, repr(tolerance), self._describe(self._probes)]
        self.hits = self.misses = self.rechecked = self.false_merges = 0

    def key(self, function: Callable[..., Any]) -> bytes:
        """SHA-256 of what a function does on the probes, and of the probes themselves.

        Raises RecipeError when an output has no form that could be compared.
        """
        behaviour = [self._behave(function, probe) for probe in self._probes]
        return hashlib.sha256(canonical([*self._about, behaviour])).digest()

    def evaluate(self, candidate: Callable[..., Any], score: Callable[[Any], T], *, name: str) -> T:
        """`score(candidate)`, or the stored score of a candidate that behaves the same.

        `name` says which evaluation it is (task, data, seed); different ones need different names.
        Scores that JSON has no text for are computed and not stored.
        """
        return self._get(self.key(candidate), ["evaluate", name], lambda: score(candidate))

    def memoize(self, function: Callable[P, T]) -> Callable[P, T]:
        """A decorator: calls are stored, and shared with functions that behave the same.

        Arguments and results that JSON has no text for are not stored; exceptions are not.
        Raises RecipeError for coroutine functions.
        """
        if inspect.iscoroutinefunction(function):
            raise RecipeError(
                f"'{function.__name__}' is a coroutine function; decorate a plain one"
            )
        signature, behaviour = inspect.signature(function), self.key(function)

        @functools.wraps(function)
        def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = ["call", list(bound.args), bound.kwargs]
            return self._get(behaviour, given, lambda: function(*args, **kwargs))

        return remembered

    def _get(self, behaviour: bytes, given: list[Any], compute: Callable[[], T]) -> T:
        request = {"prompt": [behaviour.hex(), self._as_text(given)]}
        if request["prompt"][1] is None:
            return compute()
        lookup = self._answers.lookup(request, protocol="completions", scope_id=self._scope_id)
        stored = lookup.document
        with self._lock:
            again = lookup.hit and self._rng.random() < self._recheck
            self.hits += lookup.hit and not again
            self.misses += not lookup.hit
            self.rechecked += again
        if lookup.hit and not again:
            return stored["result"]
        result = compute()
        if again and self._describe(stored["result"]) != self._describe(result):
            with self._lock:
                self.false_merges += 1
        if lookup.ticket is not None and self._as_text(result) is not None:
            self._answers.store(lookup.ticket, {"result": result})
        return result

    def _as_text(self, value: Any) -> str | None:
        """A value as JSON, or None where it would not come back as it is."""
        try:
            return canonical(value).decode() if _is_json(value) else None
        except RecipeError:
            return None

    def _behave(self, function: Callable[..., Any], probe: tuple[Any, ...]) -> list[Any]:
        """What a function does on one input; raising is behaviour like any other."""
        try:
            output = function(*copy.deepcopy(probe))
        except Exception as error:
            return ["raises", f"{type(error).__module__}.{type(error).__qualname__}"]
        return ["returns", self._describe(output)]

    def _describe(self, value: Any) -> list[Any]:
        """A value as JSON with its types, numbers rounded. Raises RecipeError where none is."""
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return [type(value).__name__, value]
        if isinstance(value, int):
            return ["int", str(value)]
        if isinstance(value, float):
            return ["float", self._rounded(value)]
        if isinstance(value, complex):
            return ["complex", self._rounded(value.real), self._rounded(value.imag)]
        if isinstance(value, bytes):
            return ["bytes", value.hex()]
        if isinstance(value, Mapping):
            pairs = [[self._describe(name), self._describe(item)] for name, item in value.items()]
            return ["mapping", sorted(pairs, key=canonical)]
        if isinstance(value, list | tuple):
            return [type(value).__name__, *map(self._describe, value)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(map(self._describe, value), key=canonical)]
        if hasattr(value, "tolist") and hasattr(value, "shape"):  # arrays and tensors
            return ["array", list(value.shape), self._describe(value.tolist())]
        raise RecipeError(
            f"a probe gave a {type(value).__name__}, which cannot be compared; let the function "
            "return numbers, text, or containers and arrays of them"
        )

    def _rounded(self, value: float) -> str:
        if not math.isfinite(value):
            return repr(value)
        if self._tolerance == 0:
            return repr(value + 0.0)  # -0.0 is 0.0
        steps = value / self._tolerance
        return str(round(steps)) if math.isfinite(steps) else repr(value)


def _is_json(value: Any) -> bool:
    """Whether JSON gives the value back with its types."""
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return type(value) in (str, int, float, bool, type(None))
