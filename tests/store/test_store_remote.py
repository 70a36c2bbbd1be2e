"""A Store whose far tier fails: every request gets its answer, and hits come back with the tier."""

import uuid

import pytest
from contract import BODY, KEYS, read

from recollect.errors import StoreError
from recollect.store.store import Store
from recollect.store.tiers.guarded import GuardedTier
from recollect.store.tiers.redis import RedisTier


@pytest.fixture
def space():
    return uuid.uuid4().hex


def nothing_lives_on(store):
    """No lease and no reservation is left anywhere."""
    store.flush()
    return all(tier.leases == tier.writing == 0 for tier in store.stats().tiers)


def test_two_engines_share_what_either_computed(redis_url, space):
    with (
        Store(host="1MiB", remote=redis_url, namespace=space) as one,
        Store(host="1MiB", remote=redis_url, namespace=space) as other,
    ):
        keys = [i.to_bytes(32, "big") for i in range(40)]
        hits = asked = 0
        for step, key in enumerate(keys * 2):
            mine, theirs = (one, other) if step % 2 == step // len(keys) else (other, one)
            if step >= len(keys):
                asked += 1
                hits += read(mine, key) == key * 100
            assert mine.put(key, key * 100)
            mine.flush()
            assert theirs.contains(key)
        assert hits == asked == len(keys)
        assert nothing_lives_on(one)
        assert nothing_lives_on(other)


def test_hits_survive_the_end_of_the_engine(redis_url, space):
    with Store(remote=redis_url, namespace=space) as store:
        store.put(KEYS[0], BODY)
    with Store(remote=redis_url, namespace=space) as again:
        assert read(again, KEYS[0]) == BODY
        assert again.longest(KEYS) == 1


def test_redis_down_at_start(redis_servers, space):
    server = redis_servers()
    server.kill()
    with Store(remote=server.url, namespace=space) as store:
        assert read(store, KEYS[0]) is None
        assert store.put(KEYS[0], BODY)  # the host tier has it
        assert read(store, KEYS[0]) == BODY
        assert store.longest(KEYS) == 1
        assert not store.contains(KEYS[1])
        assert list(store.load(KEYS[1:], 100, nbytes=1)) == []
        assert nothing_lives_on(store)


@pytest.mark.parametrize("failure", ["kill", "freeze"])
def test_redis_failing_in_the_middle(redis_servers, space, failure):
    server = redis_servers()
    far = RedisTier(server.url, namespace=space, timeout=0.1, piece=1000)
    guard = GuardedTier(far, backoff=1000)
    with Store(host="1MiB", remote=guard) as store:
        store.put(KEYS[0], BODY)
        store.flush()
        getattr(server, failure)()
        for key in KEYS:
            assert store.put(key, BODY)
            assert read(store, key) == BODY
        assert nothing_lives_on(store)
        store.delete(KEYS[0])
        assert read(store, KEYS[0]) is None
        assert store.stats().tiers[1].errors <= 3  # the guard asked no more after the first
        if failure == "freeze":
            server.thaw()
        else:
            server.start()
        guard._retry()
        assert guard.available
        assert store.put(KEYS[0], BODY[::-1])
        store.flush()
        assert read(far, KEYS[0]) == (BODY if failure == "freeze" else BODY[::-1])


def test_a_wrong_password_is_one_clear_error_at_start(redis_servers, space):
    server = redis_servers(password="right")
    with pytest.raises(StoreError, match="refuses the user or password") as told:
        Store(remote=server.url.replace("right", "guess"), namespace=space)
    assert len(str(told.value).splitlines()) == 1
    assert "guess" not in str(told.value)
    tolerant = GuardedTier(RedisTier(server.url.replace("right", "guess")), fail_open=True)
    with Store(host="1MiB", remote=tolerant) as store:
        assert store.put(KEYS[0], BODY)
        assert read(store, KEYS[0]) == BODY


def test_encryption_reaches_redis_and_not_memory(redis_url, space):
    with Store(remote=redis_url, namespace=space, encryption_key=bytes(32)) as store:
        store.put(KEYS[0], BODY)
        store.flush()
        assert read(store.tiers[0], KEYS[0]) == BODY
        below = RedisTier(redis_url, namespace=space)
        assert BODY[:16] not in read(below, KEYS[0])
    with Store(remote=redis_url, namespace=space, encryption_key=bytes(32)) as again:
        assert read(again, KEYS[0]) == BODY
    with pytest.raises(StoreError, match="another encryption key"):
        Store(remote=redis_url, namespace=space, encryption_key=bytes(31) + b"x")


def test_namespaces_on_one_redis_share_nothing(redis_url, space):
    tokens = list(range(512))
    with (
        Store(remote=redis_url, namespace=f"{space[:20]}-a") as one,
        Store(remote=redis_url, namespace=f"{space[:20]}-b") as other,
    ):
        mine, theirs = (store.chunk_keys("m", tokens) for store in (one, other))
        assert not set(mine) & set(theirs)
        one.put(mine[0], BODY)
        one.flush()
        assert not other.contains(mine[0])
