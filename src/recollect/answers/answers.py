"""`Answers`: look a request up, store what the model said, remove what should not be there.

Looking up asks the exact tier, then, where the recipe has one, the semantic tier. A backend that
fails makes lookups misses and drops writes: no error of the cache reaches the caller's request.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from recollect.answers.backends.base import Filter
from recollect.answers.reading import Reading
from recollect.answers.results import Purged
from recollect.answers.writing import Writing
from recollect.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np


class Answers(Reading, Writing):
    """A response cache: exact, and semantic where the recipe says so.

    Args:
        backend: ``memory``, ``sqlite:///path``, ``redis://…``, ``postgresql://…`` or a Backend.
        recipe: name or composition of recipes of the area ``answers``; ``exact`` has one tier.
        encoder: of queries: an Encoder, ``ngram`` or ``minilm``; the recipe's own when None.
        clock: where all times come from.
        secret: key of the HMAC that hides user ids in the store; one is made with the store when
            None. Give your own to keep it out of the store.
        scope: who shares answers: ``user``, ``team``, ``tenant``, ``global``.
        ttl: seconds an answer lives where no stage says otherwise.
        capacity: entries at most; the least used leave first.
        ledger: an audit log, the path of one, or None for the latest lines in memory.
        resolved_model, policy, epoch: see `identity.identify`.
        owns_state: see `identity.identify`.
        serve_tool_calls: answers with tool calls may be served to similar requests.
        judge: whether two answers' texts say the same; for `EXPLORE` and for promotion.
        arguments: parameters of the recipe's stages, or whole stages by kind (``verifier=…``).

    Raises RecipeError for unknown recipes and arguments, StoreError for a store written by a
    newer version.
    """

    @property
    def is_semantic(self) -> bool:
        """Whether similar requests may be answered."""
        return self._semantic is not None

    def encode(self, text: str) -> np.ndarray:
        """The unit vector (dim,) of a text. Raises RecipeError where nothing is semantic."""
        if self._semantic is None:
            raise RecipeError("this cache has no encoder")
        return self._semantic.encode(text)

    def wait(self) -> None:
        """Until no index is being built in the background; lookups need not wait for that."""
        if self._semantic is not None:
            self._semantic.wait()

    def forget(self, *entry_ids: int, by: str = "operator") -> int:
        """Remove entries and the turns that follow them; how many went."""
        with self._failing_open("forget"):
            return len(self._delete(entry_ids, self._clock.now(), by=by))
        return 0

    def purge(
        self,
        *,
        key: str | None = None,
        scope: str | None = None,
        writer: str | None = None,
        before: float | None = None,
        everything: bool = False,
        dry_run: bool = True,
    ) -> Purged:
        """Remove all entries that match every criterion given, and the turns that follow them.

        Args:
            key: of one request (`Entry.exact_fp` in hex), in every partition.
            scope: all that this scope id may be served.
            writer: all that this user wrote.
            before: written before this time, in seconds.
            everything: remove all; the only criterion then.
            dry_run: say what would go, remove nothing.

        Raises RecipeError without a criterion, and StoreError when the store is unavailable: a
        purge that did not happen must not look like one that did.
        """
        if everything == any(given is not None for given in (key, scope, writer, before)):
            raise RecipeError("say what to purge: key, scope, writer, before, or everything=True")
        try:
            fingerprint = bytes.fromhex(key) if key is not None else None
        except ValueError as error:
            raise RecipeError(f"'{key}' is no key: 64 hexadecimal digits") from error
        which = Filter(
            exact_fp=fingerprint,
            scope_key=None if scope is None else self._scope_key(scope),
            writer=None if writer is None else self._writer_key(writer),
            before=before,
        )
        entries = list(self._backend.scan(which))
        categories = dict(Counter(entry.category for entry in entries))
        ids = tuple(entry.id for entry in entries)
        if not dry_run:
            ids = tuple(sorted(self._delete(ids, self._clock.now(), by="purge")))
        return Purged(ids, dry_run, categories)

    def promote(self, *entry_ids: int, by: str = "operator") -> None:
        """Take entries out of quarantine by hand; unknown ids are no error."""
        with self._failing_open("promote"):
            self._promote(entry_ids, self._clock.now(), by)

    def sweep(self) -> int:
        """Remove what has expired; how many. Lookups never serve it, this gives back its room."""
        now = self._clock.now()
        with self._failing_open("sweep"):
            expired = [entry.id for entry in self._backend.scan(Filter(expired=now))]
            return len(self._delete(expired, now, by="expiry"))
        return 0

    def stats(self) -> dict[str, Any]:
        """Counts since this object was made, what hits saved, and entries stored now."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            saved = dict(self._saved)
        for name in ("lookups", "hits_exact", "hits_semantic", "misses", "stored", "not_stored"):
            counts.setdefault(name, 0)
        counts["backend"] = self._backend.name
        counts["saved_seconds"], counts["saved_tokens"] = saved["seconds"], saved["tokens"]
        counts["entries"] = None
        with self._failing_open("stats"):
            counts["entries"] = self._backend.count()
        return counts

    def close(self) -> None:
        """Write what was put off and let go of files and connections."""
        with self._failing_open("close"):
            self._backend.close()
        self.ledger.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
