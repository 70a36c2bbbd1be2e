"""What callers have spent, by account and period, and whether there is something left.

Kept in memory and, where a file is given, in SQLite: a restart does not hand out budgets again.
A request is admitted while something is left and charged when its answer is there, so an account
can overdraw by what is in flight.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from recollect.answers.clock import Clock
from recollect.errors import GatewayError
from recollect.gateway.config import Budget
from recollect.gateway.refusals import Refusal


@dataclass
class Spent:
    """What an account has spent in the period that began at `since` (seconds)."""

    since: int
    requests: int = 0
    tokens: int = 0
    money: float = 0.0


class Budgets:
    """Accounts.

    Args:
        clock: says when a period ends.
        path: SQLite file, or empty.
    """

    def __init__(self, clock: Clock, path: str = "") -> None:
        self._clock = clock
        self._accounts: dict[str, Spent] = {}
        self._changed: set[str] = set()
        self._file: sqlite3.Connection | None = None
        if path:
            self._open(path)

    def admit(self, spends: Mapping[str, Budget]) -> None:
        """Count one request on every account. Raises Refusal (429) when one has nothing left."""
        for account, budget in spends.items():
            spent = self._current(account, budget)
            for name in ("requests", "tokens", "money"):
                limit = getattr(budget, name)
                if limit is not None and getattr(spent, name) >= limit:
                    left = spent.since + budget.seconds - self._clock.now()
                    raise Refusal(
                        429,
                        f"the budget of {limit} {name} per {budget.per} is spent",
                        "budget_exceeded",
                        {"retry-after": str(max(1, round(left)))},
                    )
        for account, budget in spends.items():
            self._current(account, budget).requests += 1
            self._changed.add(account)

    def charge(self, spends: Mapping[str, Budget], tokens: int, money: float) -> None:
        """Take what an answer cost from every account."""
        for account, budget in spends.items():
            spent = self._current(account, budget)
            spent.tokens += tokens
            spent.money += money
            self._changed.add(account)

    def spent(self) -> dict[str, Spent]:
        """Every account of this period."""
        return dict(self._accounts)

    def save(self) -> None:
        """Write what changed to the file. Raises GatewayError when that fails."""
        if self._file is None or not self._changed:
            return
        rows = [(name, *vars(self._accounts[name]).values()) for name in self._changed]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO spent VALUES (?,?,?,?,?)", rows)
        except sqlite3.Error as error:
            raise GatewayError(f"cannot write the budgets: {error}") from error
        self._changed.clear()

    def close(self) -> None:
        """Save and close."""
        self.save()
        if self._file is not None:
            self._file.close()

    def _current(self, account: str, budget: Budget) -> Spent:
        since = int(self._clock.now()) // budget.seconds * budget.seconds
        spent = self._accounts.get(account)
        # A clock that was set back stays in the period it had reached.
        if spent is None or spent.since < since:
            spent = self._accounts[account] = Spent(since)
        return spent

    def _open(self, path: str) -> None:
        try:
            self._file = sqlite3.connect(path)
            with self._file:
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS spent (account TEXT PRIMARY KEY, since INTEGER, "
                    "requests INTEGER, tokens INTEGER, money REAL)"
                )
            for account, *row in self._file.execute("SELECT * FROM spent"):
                self._accounts[account] = Spent(*row)
        except sqlite3.Error as error:
            raise GatewayError(f"cannot open the budgets in {path}: {error}") from error
