"""The Redis tier, against a real server: shared, killed, frozen, full, and behind a password."""

import time
import uuid

import pytest
import redis
from contract import BODY, KEYS, TierContract, read

from recollect.errors import StoreError
from recollect.store.tiers.guarded import Denied, GuardedTier, Unreachable
from recollect.store.tiers.redis import HEAD, RedisTier


@pytest.fixture
def open_tier(redis_url):
    """Opens tiers of one fresh namespace."""
    namespace, tiers = uuid.uuid4().hex, []

    def open_one(url=redis_url, **options):
        options = {"namespace": namespace, "count_every": 0, **options}
        tiers.append(RedisTier(url, **options))
        return tiers[-1]

    yield open_one
    for tier in tiers:
        tier.close()


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, open_tier):
        return open_tier()


class TestContractInPieces(TierContract):
    @pytest.fixture
    def tier(self, open_tier):
        return open_tier(piece=1000)


@pytest.mark.parametrize("nbytes", [0, 1, 99, 100, 101, 200, 1001])
@pytest.mark.parametrize("step", [1, 100, 150, 5000])
def test_pieces_join_to_what_was_written(open_tier, nbytes, step):
    tier = open_tier(piece=100)
    body = BODY[:nbytes]
    with tier.reserve(KEYS[0], nbytes) as reservation:
        for at in range(0, nbytes, step):
            reservation.write(body[at : at + step])
        reservation.commit()
    assert read(tier, KEYS[0]) == body
    assert tier.stat().bytes == nbytes


def test_two_engines_share_a_server(open_tier):
    one, other = open_tier(), open_tier()
    writing = one.reserve(KEYS[0], 4)
    assert other.reserve(KEYS[0], 4) is None
    writing.write(b"abcd")
    writing.commit()
    assert read(other, KEYS[0]) == b"abcd"
    assert other.delete(KEYS[0])
    assert read(one, KEYS[0]) is None


def test_namespaces_see_nothing_of_each_other(open_tier):
    space = uuid.uuid4().hex
    plain, starred = open_tier(namespace=f"{space}*"), open_tier(namespace=f"{space}x")
    starred.put(KEYS[0], b"secret")
    assert read(plain, KEYS[0]) is None
    assert list(plain.keys()) == []
    assert not plain.delete(KEYS[0])
    assert read(starred, KEYS[0]) == b"secret"


def test_entries_expire(open_tier, redis_url):
    tier = open_tier(ttl=1000, piece=1000)
    tier.put(KEYS[0], BODY)
    with redis.Redis.from_url(redis_url) as client:
        names = list(client.scan_iter(match=tier._prefix + b"*"))
        assert len(names) == 11
        assert all(900_000 < client.pttl(name) <= 1_000_000 for name in names)
        for name in names:
            client.pexpire(name, 1)
    time.sleep(0.01)
    assert read(tier, KEYS[0]) is None


def test_without_a_time_to_live_nothing_expires(open_tier, redis_url):
    tier = open_tier(piece=1000)
    tier.put(KEYS[0], BODY)
    with redis.Redis.from_url(redis_url) as client:
        names = list(client.scan_iter(match=tier._prefix + b"*"))
        assert [client.pttl(name) for name in names] == [-1] * 11


def test_what_a_crashed_writer_leaves_expires(open_tier, redis_url):
    tier = open_tier(piece=1000, writer_lease=1000)
    crashed = tier.reserve(KEYS[0], len(BODY))
    crashed.write(BODY[:5000])
    with redis.Redis.from_url(redis_url) as client:
        names = list(client.scan_iter(match=tier._prefix + b"*"))
        assert len(names) == 6  # five pieces and the writer's mark
        assert all(client.pttl(name) > 0 for name in names)
        client.delete(*names)  # as when the time is over
    assert tier.put(KEYS[0], BODY)
    crashed.write(BODY[5000:])
    with pytest.raises(StoreError, match="took too long"):
        crashed.commit()
    assert read(tier, KEYS[0]) == BODY


def test_an_aborted_write_leaves_no_key(open_tier, redis_url):
    tier = open_tier(piece=1000)
    with tier.reserve(KEYS[0], len(BODY)) as reservation:
        reservation.write(BODY)
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match=tier._prefix + b"*")) == []


@pytest.mark.parametrize("part", ["entry", "piece"])
def test_what_the_server_evicted_in_part_is_a_miss(open_tier, redis_url, part):
    tier = open_tier(piece=1000)
    tier.put(KEYS[0], BODY)
    with redis.Redis.from_url(redis_url) as client:
        names = list(client.scan_iter(match=tier._prefix + b"*"))
        client.delete(next(n for n in names if n.endswith(b":entry") == (part == "entry")))
    assert read(tier, KEYS[0]) is None
    assert tier.put(KEYS[0], b"again")


def test_foreign_and_truncated_strings_are_no_entries(open_tier, redis_url):
    tier = open_tier()
    with redis.Redis.from_url(redis_url) as client:
        for junk in (b"", b"short", bytes(HEAD.size), HEAD.pack(b"RCR1", bytes(16), 50, 100)):
            client.set(tier._key(KEYS[0], "entry"), junk)
            assert read(tier, KEYS[0]) is None
    assert tier.stat().corrupt == 4


def test_a_full_server_refuses_and_says_so(open_tier, redis_servers):
    server = redis_servers("--maxmemory", "3mb")
    tier = open_tier(server.url)
    with pytest.raises(StoreError, match="full"):
        tier.put(KEYS[0], bytes(8 << 20)) and tier.put(KEYS[1], bytes(8 << 20))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
    assert tier.reserve(KEYS[2], 10) is None
    assert tier.stat().refused == 1


def test_wrong_and_missing_passwords(open_tier, redis_servers):
    server = redis_servers(password="right")
    assert open_tier(server.url).put(KEYS[0], BODY)
    for url in (server.url.replace("right", "wrong"), server.url.replace(":right@", "")):
        with pytest.raises(Denied, match="password") as told:
            open_tier(url).get(KEYS[0])
        assert "wrong" not in str(told.value).replace("WRONGPASS", "")
        with pytest.raises(Denied):
            GuardedTier(open_tier(url))
        assert GuardedTier(open_tier(url), fail_open=True).get(KEYS[0]) is None


def test_other_urls_are_refused():
    with pytest.raises(StoreError, match="no Redis"):
        RedisTier("http://localhost")
    with pytest.raises(StoreError, match="localhost"):
        RedisTier("redis://localhost:port")
    with pytest.raises(StoreError, match="keeps nothing"):
        RedisTier("redis://localhost", ttl=0)


def test_a_server_that_is_not_there_is_unreachable():
    tier = RedisTier("redis://localhost:1")
    for call in (
        lambda: tier.get(KEYS[0]),
        lambda: tier.contains(KEYS[0]),
        lambda: tier.leading(KEYS),
        lambda: tier.reserve(KEYS[0], 1),
        lambda: tier.delete(KEYS[0]),
        lambda: list(tier.keys()),
    ):
        with pytest.raises(Unreachable, match="localhost"):
            call()


def test_a_restarted_server_is_found_again_without_an_error(open_tier, redis_servers):
    server = redis_servers()
    tier = open_tier(server.url)
    tier.put(KEYS[0], BODY)
    server.kill()
    server.start()
    assert read(tier, KEYS[0]) is None  # nothing was saved
    assert tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) == BODY


def test_a_server_that_dies_during_a_write(open_tier, redis_servers):
    server = redis_servers()
    tier = open_tier(server.url, piece=1000)
    reservation = tier.reserve(KEYS[0], len(BODY))
    reservation.write(BODY[:3000])
    server.kill()
    with pytest.raises(Unreachable):
        reservation.write(BODY[3000:])
    reservation.abort()
    assert tier._writing == 0


def test_a_frozen_server_is_given_up_on(open_tier, redis_servers):
    server = redis_servers()
    tier = GuardedTier(open_tier(server.url, timeout=0.1), backoff=1000)
    tier.put(KEYS[0], BODY)
    server.freeze()
    assert tier.get(KEYS[0]) is None
    assert not tier.available
    assert tier.get(KEYS[0]) is None  # at once: nobody waits a second time
    assert tier.stat().errors == 1
    server.thaw()


def test_a_server_down_at_start_is_taken_up_when_it_comes(open_tier, redis_servers):
    server = redis_servers()
    server.kill()
    now, retries = [0.0], []
    tier = GuardedTier(open_tier(server.url), backoff=1, clock=lambda: now[0], start=retries.append)
    assert tier.get(KEYS[0]) is None
    assert not tier.put(KEYS[0], BODY)
    assert retries == []
    now[0] = 2.0
    assert not tier.contains(KEYS[0])  # a retry is due: it runs in the background
    assert len(retries) == 1
    server.start()
    retries.pop()()
    assert tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) == BODY
