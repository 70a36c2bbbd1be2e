"""Entries in an object store: S3, Google Cloud Storage, Azure, a folder, or memory.

One entry is one object. Object stores make a put atomic and a listing consistent, so there is
nothing to stage: an entry is sent when it is committed.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recollect.errors import StoreError
from recollect.store.tiers.base import (
    NO_FACTS,
    Facts,
    Lease,
    Reservation,
    Tier,
    TierStat,
    check_key,
)
from recollect.store.tiers.guarded import Denied, Unreachable
from recollect.store.tiers.partial import PartialLease
from recollect.store.tiers.reservation import CountedReservation

try:
    import obstore
    from obstore import exceptions
    from obstore.store import from_url
except ImportError as error:  # pragma: no cover
    raise StoreError("object stores need obstore: pip install recollect[store]") from error

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https", "file", "memory")
ASKED_AT_ONCE = 16  # entries that `leading` asks for together


class ObjectTier(Tier):
    """A folder of an object store.

    Args:
        url: ``s3://bucket/folder``, ``gs://…``, ``az://…``, ``file:///folder`` or ``memory:///``.
        namespace: entries of other namespaces are neither seen nor touched.
        config: settings of the service, e.g. ``{"aws_endpoint": …}``; what is not given comes from
            the environment, as for the service's own tools.
        client: options of the HTTP client, e.g. ``{"allow_http": True}``.
        connect_timeout: seconds to reach the service.
        timeout: seconds for one request, body included.
        retries: attempts after the first that failed.
        count_every: seconds for which `stat` believes its last listing.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "default",
        config: Mapping[str, Any] | None = None,
        client: Mapping[str, Any] | None = None,
        connect_timeout: float = 1.0,
        timeout: float = 10.0,
        retries: int = 1,
        count_every: float = 60.0,
        name: str = "objects",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise StoreError(
                f"'{parts.scheme}://' is no object store; write one of {', '.join(SCHEMES)}"
            )
        self.name = name
        self._where = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        safe = re.fullmatch(r"[\w-][\w.-]*", namespace, re.ASCII)
        self._folder = namespace if safe else "=" + namespace.encode().hex()
        options: dict[str, Any] = {}
        if parts.scheme == "file":
            options["mkdir"] = True
        elif parts.scheme != "memory":
            options["client_options"] = {
                "connect_timeout": timedelta(seconds=connect_timeout),
                "timeout": timedelta(seconds=timeout),
                **(client or {}),
            }
            options["retry_config"] = {
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=timeout),
                "backoff": {"init_backoff": timedelta(milliseconds=50)},
            }
            options["config"] = dict(config or {}) or None
        try:
            self._store = from_url(url, **options)
        except (exceptions.BaseError, ValueError, OSError) as error:
            raise StoreError(f"cannot open {self._where}: {_first_line(error)}") from error
        self._lock = threading.RLock()  # leases may end, and count, in a garbage collection
        self._being_written: set[bytes] = set()
        self._hits = self._misses = self._errors = self._leases = 0
        self._count_every = count_every
        self._counted: tuple[float, int, int] | None = None  # when, entries, bytes
        self._pool: ThreadPoolExecutor | None = None

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        check_key(key)
        with self._lock:
            if key in self._being_written:
                return None
            self._being_written.add(key)
        present = True
        try:
            present = self.contains(key)
        finally:
            if present:
                self._written(key)
        return None if present else _ObjectReservation(self, key, nbytes)

    def get(self, key: bytes) -> Lease | None:
        check_key(key)
        with self._speaking():
            try:
                data = obstore.get(self._store, self._path(key)).bytes()
            except FileNotFoundError:
                self._count("_misses")
                return None
        self._count("_hits", "_leases")
        return Lease(data, lambda: self._count("_leases", by=-1))

    def open(self, key: bytes) -> Lease | None:
        check_key(key)
        path = self._path(key)
        with self._speaking():
            try:
                nbytes = obstore.head(self._store, path)["size"]
            except FileNotFoundError:
                self._count("_misses")
                return None
        self._count("_hits", "_leases")
        return PartialLease(
            nbytes,
            lambda start, stop: self._range(path, start, stop),
            lambda: self._count("_leases", by=-1),
        )

    def contains(self, key: bytes) -> bool:
        with self._speaking():
            try:
                obstore.head(self._store, self._path(key))
            except FileNotFoundError:
                return False
        return True

    def leading(self, keys: Sequence[bytes]) -> int:
        """Several are asked for at once: a round trip to an object store is long."""
        if len(keys) == 1:
            return int(self.contains(keys[0]))
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(ASKED_AT_ONCE, "recollect-objects")
        for first in range(0, len(keys), ASKED_AT_ONCE):
            present = list(self._pool.map(self.contains, keys[first : first + ASKED_AT_ONCE]))
            if False in present:
                return first + present.index(False)
        return len(keys)

    def delete(self, key: bytes) -> bool:
        check_key(key)
        if not self.contains(key):  # services do not tell whether there was something to delete
            return False
        with self._speaking(), suppress(FileNotFoundError):
            obstore.delete(self._store, self._path(key))
        return True

    def keys(self) -> Iterator[bytes]:
        for key, _ in self._list():
            yield key

    def stat(self) -> TierStat:
        """Entries and bytes are counted by listing the folder, but not at every call."""
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] >= self._count_every:
            sizes = [size for _, size in self._list()]
            self._counted = (now, len(sizes), sum(sizes))
        _, entries, nbytes = self._counted
        return TierStat(
            self.name,
            entries=entries,
            bytes=nbytes,
            hits=self._hits,
            misses=self._misses,
            errors=self._errors,
            leases=self._leases,
            writing=len(self._being_written),
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _list(self) -> Iterator[tuple[bytes, int]]:
        """(key, bytes) of every entry."""
        with self._speaking():
            for batch in obstore.list(self._store, self._folder):
                for found in batch:
                    with suppress(ValueError):  # a file that is none of ours
                        key = bytes.fromhex(found["path"].rpartition("/")[2])
                        if len(key) == 32:
                            yield key, found["size"]

    def _range(self, path: str, start: int, stop: int) -> Buffer:
        with self._speaking():
            try:
                return memoryview(obstore.get_range(self._store, path, start=start, end=stop))
            except FileNotFoundError as error:
                raise StoreError("the entry is gone") from error

    def _path(self, key: bytes) -> str:
        return f"{self._folder}/{key.hex()[:2]}/{key.hex()}"

    def _put(self, key: bytes, data: Buffer) -> None:
        with self._speaking(), suppress(exceptions.AlreadyExistsError):  # another process was first
            obstore.put(self._store, self._path(key), data, mode="create")

    def _written(self, key: bytes) -> None:
        with self._lock:
            self._being_written.discard(key)

    def _count(self, *names: str, by: int = 1) -> None:
        with self._lock:
            for name in names:
                setattr(self, name, getattr(self, name) + by)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, exceptions.AlreadyExistsError):
            raise
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            self._count("_errors")
            raise Denied(
                f"{self._where} refuses access; check the credentials in the environment "
                f"({_first_line(error)})"
            ) from error
        except exceptions.GenericError as error:
            self._count("_errors")
            raise Unreachable(f"{self._where} does not answer: {_first_line(error)}") from error
        except (exceptions.BaseError, OSError) as error:
            self._count("_errors")
            raise StoreError(f"{self._where} says: {_first_line(error)}") from error


class _ObjectReservation(CountedReservation):
    """Collects the bytes here; nobody else sees any before the one put."""

    def __init__(self, tier: ObjectTier, key: bytes, nbytes: int) -> None:
        super().__init__(nbytes)
        self._tier, self._key = tier, key
        self._data = bytearray(nbytes)

    def _store(self, view: memoryview, at: int) -> None:
        self._data[at : at + view.nbytes] = view

    def _publish(self) -> None:
        self._tier._put(self._key, self._data)

    def _discard(self) -> None:
        """Nothing has left this process."""

    def _end(self) -> None:
        super()._end()
        self._data = bytearray()
        self._tier._written(self._key)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
