"""Encryption at rest: AES-256-GCM around any tier, so that what leaves memory is unreadable.

Every entry has its own key, derived from the store's key and the entry's name (HKDF-SHA256), and a
random nonce. The name is authenticated too: an entry put in another's place is a miss.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from recollect.errors import StoreError
from recollect.store.tiers.base import NO_FACTS, Facts, Lease, Reservation, Tier, TierStat
from recollect.store.tiers.guarded import Denied
from recollect.store.tiers.reservation import CountedReservation

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import GCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
except ImportError as error:  # pragma: no cover
    raise StoreError("encryption needs cryptography: pip install recollect[store]") from error

if TYPE_CHECKING:
    pass

HEAD = struct.Struct("<4s8s12s")  # magic, which key, nonce
MAGIC = b"RCE1"
TAG_BYTES = 16
OVERHEAD = HEAD.size + TAG_BYTES
CHECK_KEY = b"recollect:which-encryption-key\0\0"  # 32 bytes; not a digest of anything


def read_key(source: bytes | str | os.PathLike[str]) -> bytes:
    """The 32 bytes of a key: given as bytes, or the path of a file that has them, raw or as hex.

    Raises StoreError where there is no such file or the length is another.
    """
    if isinstance(source, bytes):
        content = source
    else:
        try:
            content = Path(source).expanduser().read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot read the encryption key from {source}: {reason}") from error
        with suppress(ValueError):
            content = bytes.fromhex(content.decode("ascii"))
    if len(content) != 32:
        raise StoreError(
            f"an encryption key has 32 bytes, this one {len(content)}; make one with "
            "`openssl rand -hex 32 > key`"
        )
    return content


class EncryptedTier(Tier):
    """Hides the bytes of entries, and only those: names, sizes and times stay visible.

    The first operation, or `check`, compares a check entry with the key: a tier that was written
    with another one raises `Denied`. `GuardedTier` around this one checks at start.

    Args:
        tier: where the encrypted entries lie.
        key: 32 bytes, or the path of a file (see `read_key`).
    """

    def __init__(self, tier: Tier, key: bytes | str | os.PathLike[str]) -> None:
        self.name = tier.name
        self.tier = tier
        self._secret = read_key(key)
        self._which = self._derive(b"which key", 8)
        self._hits = self._misses = self._corrupt = 0
        self._checked = False

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        self.check()
        inner = self.tier.reserve(key, nbytes + OVERHEAD, facts)
        return None if inner is None else _EncryptedReservation(self, inner, key, nbytes)

    def get(self, key: bytes) -> Lease | None:
        self.check()
        lease = self.tier.get(key)
        if lease is None:
            self._misses += 1
            return None
        with lease:
            plain = self._decrypt(key, lease.data)
        if plain is None:
            self._misses += 1
            return None
        self._hits += 1
        return Lease(plain)

    def contains(self, key: bytes) -> bool:
        self.check()
        return self.tier.contains(key)

    def leading(self, keys: Sequence[bytes]) -> int:
        self.check()
        return self.tier.leading(keys)

    def delete(self, key: bytes) -> bool:
        self.check()
        return self.tier.delete(key)

    def set_aside(self, key: bytes) -> None:
        self.check()
        self.tier.set_aside(key)

    def keys(self) -> Iterator[bytes]:
        self.check()
        return (key for key in self.tier.keys() if key != CHECK_KEY)  # noqa: SIM118

    def stat(self) -> TierStat:
        """The inner tier's, without what encryption adds."""
        stat = self.tier.stat()
        checks = int(stat.entries > 0 and self.tier.contains(CHECK_KEY))
        entries = stat.entries - checks
        return replace(
            stat,
            entries=entries,
            bytes=max(0, stat.bytes - checks * (len(MAGIC) + 8) - entries * OVERHEAD),
            hits=self._hits,
            misses=self._misses,
            corrupt=stat.corrupt + self._corrupt,
        )

    def close(self) -> None:
        self.tier.close()

    def check(self) -> None:
        """Once: is this the key that the tier was written with? Raises Denied if not."""
        if self._checked:
            return
        mine = MAGIC + self._which
        lease = self.tier.get(CHECK_KEY)
        if lease is None:
            self.tier.put(CHECK_KEY, mine)
        else:
            with lease:
                if bytes(lease.data) != mine:
                    raise Denied(
                        f"the tier '{self.name}' was written with another encryption key; give "
                        "that one, or another place or namespace to this store"
                    )
        self._checked = True

    def _derive(self, purpose: bytes, nbytes: int) -> bytes:
        return HKDFExpand(SHA256(), nbytes, b"recollect " + purpose).derive(self._secret)

    def _cipher_key(self, key: bytes) -> bytes:
        return self._derive(b"entry " + key, 32)

    def _decrypt(self, key: bytes, data: memoryview) -> bytes | None:
        """The plain bytes, or None for what this key did not write or somebody changed since."""
        head, body = bytes(data[: HEAD.size]), data[HEAD.size :]
        if len(head) == HEAD.size and len(body) >= TAG_BYTES:
            magic, which, nonce = HEAD.unpack(head)
            if magic == MAGIC and which != self._which:
                self._corrupt += 1
                return None  # whole, but another key's: left where it is
            with suppress(InvalidTag):
                names = _names(head, key, len(body) - TAG_BYTES)
                return AESGCM(self._cipher_key(key)).decrypt(nonce, body, names)
        self._corrupt += 1
        self.tier.set_aside(key)
        return None


class _EncryptedReservation(CountedReservation):
    """Encrypts what is written, as it comes."""

    def __init__(self, tier: EncryptedTier, inner: Reservation, key: bytes, nbytes: int) -> None:
        super().__init__(nbytes)
        self._inner = inner
        nonce = os.urandom(12)
        head = HEAD.pack(MAGIC, tier._which, nonce)
        self._encryptor = Cipher(AES(tier._cipher_key(key)), GCM(nonce)).encryptor()
        self._encryptor.authenticate_additional_data(_names(head, key, nbytes))
        inner.write(head)

    def _store(self, view: memoryview, at: int) -> None:
        self._inner.write(self._encryptor.update(view))

    def _publish(self) -> None:
        self._encryptor.finalize()
        self._inner.write(self._encryptor.tag)
        self._inner.commit()

    def _discard(self) -> None:
        self._inner.abort()

    def __del__(self) -> None:
        """The inner reservation sees to its own end."""


def _names(head: bytes, key: bytes, nbytes: int) -> bytes:
    """What the tag vouches for besides the bytes."""
    return head + key + nbytes.to_bytes(8, "little")
