"""A store that misbehaves on command, inside the engine's processes.

Named as `store_factory`. What goes wrong is read from the file in $RECOLLECT_FAULTS before every
operation, ``{"seed": 1, "rate": 0.3, "kinds": ["drop", …]}``; what is held open is written to the
same name with ``.status`` ten times a second.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recollect.errors import StoreError
from recollect.store import Store
from recollect.store.tiers.base import Lease

KINDS = ("drop", "delay", "corrupt", "truncate", "raise", "lie", "crash", "rot", "bug")


def open_store(path: str | None = None, **arguments: Any) -> FaultyStore:
    """What `Store` would open, with faults."""
    return FaultyStore(Store(path, **arguments), reports=arguments["host"] is not None)


class FaultyStore:
    """The methods the connector uses."""

    def __init__(self, store: Store, reports: bool) -> None:
        self._store = store
        self._control = Path(os.environ["RECOLLECT_FAULTS"])
        self._text = ""
        self._random = random.Random(0)
        self._plan: dict[str, Any] = {"rate": 0.0, "kinds": []}
        self._injected = dict.fromkeys(KINDS, 0)
        self._lock = threading.Lock()
        if reports:
            threading.Thread(target=self._tell, daemon=True).start()

    def put(self, key: bytes, data: Sequence[Any], *, tokens: int = 0) -> bool:
        fault = self._fault("drop", "delay", "raise", "crash", "rot", "bug")
        if fault == "drop":
            return False
        if fault == "rot":
            whole = bytearray(b"".join(bytes(part) for part in data))
            whole[self._random.randrange(len(whole))] ^= 0x40
            return self._store.put(key, bytes(whole), tokens=tokens)
        if fault == "crash":  # between reserve and commit
            size = sum(memoryview(part).nbytes for part in data)
            reservation = self._store.reserve(key, size, tokens=tokens)
            if reservation is not None:
                reservation.write(bytes(data[0]))
                del reservation
            raise StoreError("injected: died before the commit")
        return self._store.put(key, data, tokens=tokens)

    def get(self, key: bytes) -> Lease | None:
        fault = self._fault("drop", "delay", "corrupt", "truncate", "raise", "bug")
        if fault == "drop":
            return None
        lease = self._store.get(key)
        if lease is None or fault not in ("corrupt", "truncate"):
            return lease
        whole = bytearray(lease.data)
        lease.release()
        if fault == "corrupt":
            whole[self._random.randrange(len(whole))] ^= 0x10
        else:
            del whole[self._random.randrange(len(whole)) :]
        return Lease(bytes(whole))

    def locate(self, keys: Sequence[bytes]) -> list[str]:
        fault = self._fault("drop", "delay", "raise", "lie", "bug")
        if fault == "drop":
            return []
        return ["disk"] * len(keys) if fault == "lie" else self._store.locate(keys)

    def delete(self, key: bytes) -> bool:
        return self._store.delete(key)

    def close(self) -> None:
        self._store.close()

    def _fault(self, *kinds: str) -> str | None:
        """The kind of this operation's fault, if it is to have one; some happen here."""
        with self._lock:
            self._read_plan()
            possible = [kind for kind in kinds if kind in self._plan["kinds"]]
            if not possible or self._random.random() >= self._plan["rate"]:
                return None
            kind = self._random.choice(possible)
            self._injected[kind] += 1
            pause = self._random.uniform(0.001, 0.05)
        if kind == "delay":
            time.sleep(pause)
        if kind == "raise":
            raise StoreError("injected: the tier is gone")
        if kind == "bug":
            raise ZeroDivisionError("injected: a bug in the store")
        return kind

    def _read_plan(self) -> None:
        try:
            text = self._control.read_text()
        except OSError:
            return
        if text != self._text:
            self._text, self._plan = text, json.loads(text)
            self._random = random.Random(self._plan["seed"])

    def _tell(self) -> None:
        status = self._control.with_suffix(".status")
        while True:
            tiers = self._store.stats().tiers
            told = {
                "leases": sum(tier.leases for tier in tiers),
                "writing": sum(tier.writing for tier in tiers),
                "entries": {tier.name: tier.entries for tier in tiers},
                "injected": self._injected,
                "plan": self._text,
            }
            status.with_suffix(".new").write_text(json.dumps(told))
            os.replace(status.with_suffix(".new"), status)
            time.sleep(0.1)
