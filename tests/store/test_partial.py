"""Entries that come range by range: only what was asked for, each byte once, and right."""

import random
import uuid

import pytest
from contract import KEYS

from recollect.errors import StoreError
from recollect.store import Store
from recollect.store.tiers.guarded import GuardedTier
from recollect.store.tiers.objects import ObjectTier
from recollect.store.tiers.partial import BLOCK, PartialLease
from recollect.store.tiers.redis import RedisTier

BODY = random.Random(0).randbytes(5 * BLOCK + 1000)


@pytest.fixture(params=["redis", "redis in pieces", "objects", "guarded"])
def tier(request, redis_url):
    space = uuid.uuid4().hex
    made = {
        "redis": lambda: RedisTier(redis_url, namespace=space),
        "redis in pieces": lambda: RedisTier(redis_url, namespace=space, piece=BLOCK + 7),
        "objects": lambda: ObjectTier("memory://", namespace=space),
        "guarded": lambda: GuardedTier(RedisTier(redis_url, namespace=space)),
    }[request.param]()
    yield made
    made.close()


def test_ranges_are_those_of_the_entry(tier):
    tier.put(KEYS[0], BODY)
    draw = random.Random(1)
    with tier.open(KEYS[0]) as lease:
        assert isinstance(lease, PartialLease)
        assert lease.nbytes == len(BODY)
        for _ in range(6):
            start = draw.randrange(len(BODY))
            stop = draw.randrange(start, len(BODY) + 1)
            lease.require(start, stop)
            assert lease.data[start:stop] == BODY[start:stop]
        lease.require(0, len(BODY))
        assert lease.data == BODY
    assert tier.stat().leases == 0


def test_a_miss_is_a_miss_and_an_empty_entry_is_empty(tier):
    assert tier.open(KEYS[0]) is None
    tier.put(KEYS[1], b"")
    with tier.open(KEYS[1]) as lease:
        lease.require(0, 0)
        assert bytes(lease.data) == b""


def test_an_entry_that_goes_away_meanwhile_is_an_error_not_other_bytes(tier):
    tier.put(KEYS[0], BODY)
    with tier.open(KEYS[0]) as lease:
        lease.require(0, 10)
        tier.delete(KEYS[0])
        tier.put(KEYS[0], bytes(len(BODY)))
        try:
            lease.require(0, len(BODY))  # an object store cannot tell: frames are checked
        except StoreError:
            assert bytes(lease.data[:10]) == BODY[:10]
        tier.delete(KEYS[0])
        lease = tier.open(KEYS[0])
        assert lease is None


class Source:
    """Bytes, and which of them were asked for."""

    def __init__(self, body=BODY):
        self.body, self.asked = body, []

    def __call__(self, start, stop):
        self.asked.append((start, stop))
        return self.body[start:stop]


def test_nothing_is_read_twice_and_nothing_that_was_not_asked_for():
    source = Source()
    lease = PartialLease(len(BODY), source)
    lease.require(BLOCK + 1, BLOCK + 2)
    lease.require(3 * BLOCK, 3 * BLOCK + 1)
    assert source.asked == [(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)]
    lease.require(0, len(BODY))
    assert source.asked[2:] == [
        (0, BLOCK), (2 * BLOCK, 3 * BLOCK), (4 * BLOCK, len(BODY)),
    ]  # fmt: skip
    lease.require(0, len(BODY))
    assert len(source.asked) == 5


def test_too_few_bytes_are_an_error():
    lease = PartialLease(len(BODY), Source(BODY[:100]))
    with pytest.raises(StoreError, match="100 bytes of an entry came"):
        lease.require(0, 200)


def test_reads_are_observed_and_whole_entries_told_at_the_end():
    seen, whole = [], []
    for required in (BLOCK, len(BODY)):
        lease = PartialLease(len(BODY), Source())
        lease.observe = lambda nbytes, seconds: seen.append(nbytes)
        lease.finished = lambda data: whole.append(bytes(data))
        lease.require(0, required)
        lease.release()
        lease.release()
    assert seen == [BLOCK, len(BODY)]
    assert whole == [BODY]


def test_a_store_promotes_what_was_read_to_its_end(tier):
    with Store(host="4MiB", tiers=None, remote=tier) as store:
        tier.put(KEYS[0], BODY)
        for required, near in ((BLOCK, False), (len(BODY), True)):
            with store.get(KEYS[0], whole=False) as lease:
                lease.require(0, required)
            store.flush()
            assert store.tiers[0].contains(KEYS[0]) == near
        with store.get(KEYS[0]) as lease:
            assert lease.tier == "host"
            assert lease.data == BODY


def test_reads_that_fail_open_the_guard(redis_servers):
    server = redis_servers()
    tier = GuardedTier(RedisTier(server.url, namespace="n", timeout=0.2))
    tier.put(KEYS[0], BODY)
    lease = tier.open(KEYS[0])
    server.kill()
    with pytest.raises(StoreError):
        lease.require(0, 10)
    assert not tier.available
    tier.close()
