"""Encryption at rest: nothing readable below, nothing exchangeable, and a wrong key says so."""

import uuid

import pytest
from contract import BODY, KEYS, TierContract, read
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from recollect.errors import StoreError
from recollect.store.tiers.encrypted import HEAD, EncryptedTier, read_key
from recollect.store.tiers.guarded import Denied, GuardedTier
from recollect.store.tiers.objects import ObjectTier
from recollect.store.tiers.redis import RedisTier

SECRET = bytes(range(32))
OTHER = bytes(32)


@pytest.fixture
def inner():
    return ObjectTier("memory:///", count_every=0)


def replace(tier, key, data):
    """Put other bytes where an entry lies, as somebody with access to the medium can."""
    tier.delete(key)
    tier.put(key, data)


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, inner):
        return EncryptedTier(inner, SECRET)


class TestContractOnRedis(TierContract):
    @pytest.fixture
    def tier(self, redis_url):
        redis = RedisTier(redis_url, namespace=uuid.uuid4().hex, piece=1000, count_every=0)
        return EncryptedTier(redis, SECRET)


def test_nothing_readable_reaches_the_tier(inner):
    EncryptedTier(inner, SECRET).put(KEYS[0], BODY)
    stored = read(inner, KEYS[0])
    assert not any(BODY[i : i + 8] in stored for i in range(0, len(BODY), 8))


def test_equal_entries_look_different(inner):
    tier = EncryptedTier(inner, SECRET)
    tier.put(KEYS[0], BODY)
    first = read(inner, KEYS[0])
    tier.delete(KEYS[0])
    tier.put(KEYS[0], BODY)
    tier.put(KEYS[1], BODY)
    bodies = [first, read(inner, KEYS[0]), read(inner, KEYS[1])]
    assert len({body[HEAD.size :] for body in bodies}) == 3


def test_agrees_with_the_textbook_construction(inner):
    """Written as a stream, readable as one AES-256-GCM message under an HKDF-SHA256 key."""
    EncryptedTier(inner, SECRET).put(KEYS[0], BODY)
    stored = read(inner, KEYS[0])
    block = hmac.HMAC(SECRET, hashes.SHA256())  # RFC 5869, one block of HKDF-Expand
    block.update(b"recollect entry " + KEYS[0] + b"\x01")
    names = stored[: HEAD.size] + KEYS[0] + len(BODY).to_bytes(8, "little")
    opened = AESGCM(block.finalize()).decrypt(stored[12:24], stored[HEAD.size :], names)
    assert opened == BODY


@given(st.data())
def test_any_changed_byte_is_a_miss_and_set_aside(data):
    inner = ObjectTier("memory:///", count_every=0)
    tier = EncryptedTier(inner, SECRET)
    tier.put(KEYS[0], BODY[:100])
    stored = bytearray(read(inner, KEYS[0]))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    replace(inner, KEYS[0], bytes(stored))
    assert read(tier, KEYS[0]) is None
    assert tier.stat().corrupt == 1
    foreign = 4 <= at < 12  # the name of the key: it looks like another key's entry
    assert inner.contains(KEYS[0]) == foreign


@pytest.mark.parametrize("kept", [0, 3, HEAD.size, HEAD.size + 15, 60])
def test_truncated_entries_are_misses(inner, kept):
    tier = EncryptedTier(inner, SECRET)
    tier.put(KEYS[0], BODY)
    replace(inner, KEYS[0], read(inner, KEYS[0])[:kept])
    assert read(tier, KEYS[0]) is None
    assert tier.put(KEYS[0], BODY)


def test_entries_cannot_be_exchanged(inner):
    tier = EncryptedTier(inner, SECRET)
    tier.put(KEYS[0], b"for the one")
    tier.put(KEYS[1], b"for another")
    replace(inner, KEYS[0], read(inner, KEYS[1]))
    assert read(tier, KEYS[0]) is None
    assert read(tier, KEYS[1]) == b"for another"


def test_another_key_is_refused_at_start(inner):
    EncryptedTier(inner, SECRET).put(KEYS[0], BODY)
    with pytest.raises(Denied, match="another encryption key"):
        GuardedTier(EncryptedTier(inner, OTHER))
    assert GuardedTier(EncryptedTier(inner, OTHER), fail_open=True).get(KEYS[0]) is None
    assert read(EncryptedTier(inner, SECRET), KEYS[0]) == BODY


def test_another_keys_entry_is_a_miss_and_stays(inner):
    EncryptedTier(inner, SECRET).put(KEYS[0], BODY)
    inner.delete(b"recollect:which-encryption-key\0\0")
    tier = EncryptedTier(inner, OTHER)
    assert read(tier, KEYS[0]) is None
    assert tier.stat().corrupt == 1
    assert inner.contains(KEYS[0])


def test_keys_from_files(tmp_path):
    (tmp_path / "raw").write_bytes(SECRET)
    (tmp_path / "hex").write_text(SECRET.hex() + "\n")
    assert read_key(tmp_path / "raw") == read_key(str(tmp_path / "hex")) == SECRET
    (tmp_path / "short").write_bytes(b"password")
    with pytest.raises(StoreError, match="32 bytes, this one 8; make one with"):
        read_key(tmp_path / "short")
    with pytest.raises(StoreError, match="No such file"):
        read_key(tmp_path / "absent")
    with pytest.raises(StoreError, match="this one 3"):
        read_key(b"abc")
