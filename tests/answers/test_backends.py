"""Every backend keeps one contract, over real servers."""

from __future__ import annotations

import math
import sqlite3
import threading
from dataclasses import replace

import pytest
from postgres_server import ABSENT as NO_POSTGRES
from postgres_server import INITDB

from recollect.answers import Answers
from recollect.answers.backends.base import Denied, Filter, Observation, Unreachable, shown
from recollect.answers.backends.base import open_backend as open_backend_at
from recollect.answers.backends.guarded import GuardedBackend
from recollect.answers.backends.memory import MemoryBackend
from recollect.answers.entry import Entry, pack, unpack
from recollect.errors import RecipeError, StoreError

SHARED = ["sqlite", "redis", "postgresql"]
ALICE = ("chat", "body", "user", "alice-key", "model", "", "", "0")
BOB = ("chat", "body", "user", "bob-key", "model", "", "", "0")


def entry(number=0, **changes):
    """A live entry of Alice's, distinct by number."""
    made = Entry(
        id=0,
        response=b'{"answer": "\xc3\xa9 %d"}' % number,
        created_at=100.0 + number,
        expires_at=1e9,
        category="chat",
        partition=ALICE,
        exact_fp=b"%032d" % number,
        compat_fp=b"c" * 32,
        query=f"question {number}",
        writer="alice",
        cost_seconds=1.5,
        cost_tokens=20,
        facts={"model": "m", "nested": [1, None, "é"]},
        vector=b"\x00\x00\x80?" * 4,
        encoder_id="ngram",
    )
    return replace(made, **changes)


def test_an_entry_comes_back_as_it_was(backend):
    given = entry(parent=None)
    stored = replace(given, id=backend.add(given))
    assert backend.get(stored.id) == stored
    assert backend.by_exact(ALICE, given.exact_fp) == stored
    assert list(backend.scan()) == [stored]


def test_an_entry_may_live_for_ever(backend):
    entry_id = backend.add(entry(expires_at=math.inf))
    assert backend.get(entry_id).expires_at == math.inf


def test_ids_rise_even_after_the_newest_is_gone(backend):
    first = backend.add(entry(1))
    second = backend.add(entry(2))
    backend.delete([second])
    assert backend.add(entry(3)) > second > first


def test_partitions_and_fingerprints_do_not_mix(backend):
    backend.add(entry())
    assert backend.by_exact(BOB, entry().exact_fp) is None
    assert backend.by_exact(ALICE, b"x" * 32) is None
    assert backend.by_exact((*ALICE, "more"), entry().exact_fp) is None


def test_a_second_answer_to_a_request_takes_the_place_of_the_first(backend):
    old, new = backend.add(entry()), backend.add(entry(response=b"{}"))
    assert backend.by_exact(ALICE, entry().exact_fp).id == new
    assert backend.get(old) is None
    assert backend.count() == 1


def test_the_quarantined_entry_is_found_by_its_writer_only(backend):
    mine = backend.add(entry(status="quarantined", writer="alice"))
    hers = backend.add(entry(status="quarantined", writer="bob"))
    fp = entry().exact_fp
    assert backend.by_exact(ALICE, fp, "alice").id == mine
    assert backend.by_exact(ALICE, fp, "bob").id == hers
    assert backend.by_exact(ALICE, fp, "carol") is None
    assert backend.by_exact(ALICE, fp) is None
    assert {e.id for e in backend.all_exact(ALICE, fp)} == {mine, hers}


def test_promotion_takes_the_live_place(backend):
    live = backend.add(entry(writer="carol"))
    waiting = backend.add(entry(status="quarantined", writer="alice"))
    assert backend.set_status(waiting, "live")
    assert backend.get(live) is None
    assert backend.by_exact(ALICE, entry().exact_fp).id == waiting
    assert backend.set_status(waiting, "quarantined")
    assert backend.by_exact(ALICE, entry().exact_fp) is None
    assert not backend.set_status(999, "live")
    with pytest.raises(StoreError, match="unknown status"):
        backend.set_status(waiting, "gone")


def test_deleting_an_entry_deletes_what_continues_it(backend):
    root = backend.add(entry(1))
    child = backend.add(entry(2, parent=root))
    grandchild = backend.add(entry(3, parent=child))
    other = backend.add(entry(4))
    assert sorted(backend.delete([root, 999])) == [root, child, grandchild]
    assert [e.id for e in backend.scan()] == [other]
    assert backend.delete([root]) == []


def test_replacing_an_entry_deletes_what_continued_it(backend):
    root = backend.add(entry(1))
    child = backend.add(entry(2, parent=root))
    backend.add(entry(1))
    assert backend.get(child) is None


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Filter(), {0, 1, 2, 3}),
        (Filter(exact_fp=b"%032d" % 1), {1}),
        (Filter(scope_key="bob-key"), {3}),
        (Filter(writer="bob"), {2}),
        (Filter(category="code"), {1}),
        (Filter(status="quarantined"), {2}),
        (Filter(before=101.0), {0}),
        (Filter(expired=500.0), {3}),
        (Filter(writer="alice", category="chat"), {0, 3}),
        (Filter(ids=()), set()),
    ],
    ids=str,
)
def test_scan_finds_what_matches(backend, which, expected):
    backend.add(entry(0))
    backend.add(entry(1, category="code"))
    backend.add(entry(2, status="quarantined", writer="bob"))
    inner = ("chat", "body", "user", "bob-key:inner", *BOB[4:])
    backend.add(entry(3, partition=inner, expires_at=500.0))
    found = {int(e.exact_fp) for e in backend.scan(which)}
    assert found == expected


def test_scan_pages_through_many_in_order(backend):
    ids = [backend.add(entry(number)) for number in range(450)]
    assert [e.id for e in backend.scan()] == ids
    assert [e.id for e in backend.scan(after=ids[400])] == ids[401:]
    assert [e.id for e in backend.scan(Filter(ids=(ids[3], ids[1])))] == [ids[1], ids[3]]
    assert len(backend.delete(ids)) == 450
    assert backend.count() == 0


def test_hits_are_counted_and_the_least_used_are_known(backend):
    first, second, third = (backend.add(entry(number)) for number in range(3))
    backend.touch(first, 500.0)
    backend.touch(first, 501.0)
    backend.touch(999, 501.0)
    assert backend.get(first).hits == 2
    assert backend.least_used(2) == [second, third]
    assert backend.least_used(9) == [second, third, first]
    assert backend.get(first).hits == 2
    assert backend.count() == 3


def test_categories_are_counted_apart(backend):
    code = backend.add(entry(1, category="code"))
    backend.add(entry(2, category=""))
    assert [backend.count(c) for c in (None, "code", "", "none")] == [2, 1, 1, 0]
    assert backend.least_used(5, "code") == [code]
    backend.delete([code])
    assert backend.count("code") == 0
    assert backend.least_used(5, "code") == []


def test_observations_are_kept_in_order_and_go_with_their_entry(backend):
    entry_id = backend.add(entry())
    for number in range(300):
        backend.observe(entry_id, Observation(number / 1000, number % 2 == 0))
    kept = backend.observations(entry_id)
    assert len(kept) == 256
    assert kept[-1] == Observation(0.299, False)
    assert kept[0] == Observation(0.044, True)
    backend.observe(999, Observation(0.5, True))
    assert backend.observations(999) == []
    backend.delete([entry_id])
    assert backend.observations(entry_id) == []


def test_the_secret_is_made_once(backend):
    assert len(backend.secret()) == 32
    assert backend.secret() == backend.secret()


def test_many_threads_write_and_read(backend):
    errors = []

    def work(start):
        try:
            for number in range(start, start + 15):
                entry_id = backend.add(entry(number % 40))
                found = backend.get(entry_id)
                assert found is None or found.exact_fp == b"%032d" % (number % 40)
                backend.touch(entry_id, 1.0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n * 10,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stored = list(backend.scan())
    assert len({e.exact_fp for e in stored}) == len(stored) == backend.count() == 40


@pytest.mark.parametrize("kind", SHARED)
def test_a_second_process_sees_the_same_store(open_backend, kind):
    one, two = open_backend(kind), open_backend(kind)
    assert one.secret() == two.secret()
    entry_id = one.add(entry())
    assert two.by_exact(ALICE, entry().exact_fp).id == entry_id
    two.delete([entry_id])
    assert one.by_exact(ALICE, entry().exact_fp) is None


@pytest.mark.parametrize("kind", SHARED)
def test_a_damaged_record_is_a_miss_and_is_removed(open_backend, kind):
    backend = open_backend(kind)
    entry_id = backend.add(entry())
    record = bytearray(pack(entry()))
    record[-3] ^= 1
    _overwrite(backend, entry_id, bytes(record))
    assert backend.by_exact(ALICE, entry().exact_fp) is None
    assert backend.damaged == 1
    assert backend.count() == 0


@pytest.mark.parametrize("kind", SHARED)
def test_a_store_of_a_newer_version_is_refused(open_backend, kind):
    backend = open_backend(kind)
    backend.count()
    _set_schema(backend, b"99")
    with pytest.raises(StoreError, match=r"newer version.*schema 99"):
        open_backend(kind).count()
    _set_schema(backend, b"1")


def test_a_store_of_a_newer_version_stops_the_cache_from_opening(open_backend, redis_server):
    backend = open_backend("redis")
    backend.count()
    _set_schema(backend, b"99")
    with pytest.raises(StoreError, match="newer version"):
        Answers(redis_server.url)


def test_redis_lets_the_record_expire_by_itself(open_backend):
    backend = open_backend("redis")
    entry_id = backend.add(entry(created_at=100.0, expires_at=160.0))
    assert 0 < backend._client.pttl(backend._key(f"b:{entry_id}")) <= 60_000
    backend._client.delete(backend._key(f"b:{entry_id}"))  # what the server does in time
    assert backend.get(entry_id) is None
    assert backend.count() == 0


def test_what_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be read as one " * 20)
    with pytest.raises(StoreError, match=r"notes\.txt"):
        open_backend_at(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="unable to open"):
        open_backend_at(f"sqlite:///{tmp_path}/missing/answers.db")


@pytest.mark.parametrize("url", ["mysql://x", "sqlite", "", "memory-of-things", "sqlite:///"])
def test_unknown_urls_are_refused(url):
    with pytest.raises((RecipeError, StoreError), match=r"unknown backend|no path"):
        open_backend_at(url)


def test_sqlite_being_written_elsewhere_drops_the_write(open_backend, tmp_path):
    backend = open_backend("sqlite")
    other = sqlite3.connect(tmp_path / "answers.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        backend.add(entry())
    assert backend.by_exact(ALICE, entry().exact_fp) is None  # readers go on
    other.execute("ROLLBACK")
    other.close()
    assert backend.add(entry())


# Records ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3, 20, 60, 200, -1])
def test_a_torn_record_is_noticed(cut):
    with pytest.raises(StoreError):
        unpack(pack(entry())[:cut], id=1)


def test_any_changed_byte_is_noticed():
    record = pack(entry())
    for position in range(len(record)):
        changed = bytearray(record)
        changed[position] ^= 0x40
        with pytest.raises(StoreError):
            unpack(bytes(changed), id=1)


def test_a_record_of_a_newer_schema_is_refused():
    record = bytearray(pack(entry()))
    record[4] = 2
    with pytest.raises(StoreError, match="schema 2"):
        unpack(bytes(record), id=1)


# Guard --------------------------------------------------------------------------------------


class Flaky(MemoryBackend):
    """Memory that can be made to fail or to hang."""

    name = "flaky"

    def __init__(self):
        super().__init__()
        self.calls, self.fails, self.resume = 0, False, threading.Event()
        self.resume.set()

    def get(self, entry_id):
        self.calls += 1
        self.resume.wait()
        if self.fails:
            raise Unreachable("no")
        return super().get(entry_id)


class Ticks:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_backend_that_is_down_is_left_alone_until_the_pause_is_over():
    inside, ticks = Flaky(), Ticks()
    guarded = GuardedBackend(inside, deadline=5, ticks=ticks)
    inside.fails = True
    for _ in range(3):
        with pytest.raises(Unreachable):
            guarded.get(1)
    assert inside.calls == 1
    assert guarded.down
    ticks.now = 0.6
    with pytest.raises(Unreachable):
        guarded.get(1)
    assert inside.calls == 2
    ticks.now = 1.5  # the second pause is longer
    with pytest.raises(Unreachable, match="tried again"):
        guarded.get(1)
    assert inside.calls == 2
    inside.fails, ticks.now = False, 3.0
    assert guarded.get(1) is None
    assert not guarded.down
    guarded.close()


def test_a_backend_that_hangs_is_given_up_on():
    inside = Flaky()
    guarded = GuardedBackend(inside, deadline=0.02, ticks=Ticks())
    inside.resume.clear()
    with pytest.raises(Unreachable, match="does not answer"):
        guarded.get(1)
    inside.resume.set()
    guarded.close()


def test_a_refused_write_is_no_outage():
    class Full(MemoryBackend):
        def add(self, entry):
            raise StoreError("full")

    guarded = GuardedBackend(Full(), deadline=5)
    with pytest.raises(StoreError, match="full"):
        guarded.add(entry())
    assert not guarded.down
    guarded.close()


@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_a_frozen_server_makes_lookups_misses_and_drops_writes(
    open_backend, kind, redis_server, postgres_server
):
    server = redis_server if kind == "redis" else postgres_server
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    answer = {"choices": [{"finish_reason": "stop", "message": {"content": "hello"}}]}
    ticks = Ticks()
    guarded = GuardedBackend(open_backend(kind), deadline=5, ticks=ticks)
    with Answers(guarded) as answers:
        assert answers.store(request, answer, scope_id="alice")
        assert answers.lookup(request, scope_id="alice").hit
        guarded._deadline = 0.02
        server.freeze()
        try:
            lookup = answers.lookup(request, scope_id="alice")
            stored = answers.store(request, answer, scope_id="alice")
        finally:
            server.thaw()
        assert not lookup.hit
        assert lookup.reason == stored.reason == "the cache's store is unavailable"
        assert answers.stats()["failed_lookup"] == answers.stats()["failed_store"] == 1
        guarded._deadline, ticks.now = 5, 100.0
        assert answers.lookup(request, scope_id="alice").hit


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/none"])
def test_a_cache_opens_without_its_server(url):
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with Answers(url) as answers:
        assert not answers.lookup(request, scope_id="alice").hit
        assert not answers.store(request, {"choices": []}, scope_id="alice")
        assert answers.stats()["entries"] is None
        with pytest.raises(StoreError):
            answers.purge(everything=True)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://:p@ss@host/0", "redis://:…@host/0"),
        ("postgresql://ada:p:w@host/db", "postgresql://ada:…@host/db"),
        ("sqlite:///answers.db", "sqlite:///answers.db"),
        ("redis://host:6379", "redis://host:6379"),
    ],
)
def test_passwords_in_urls_are_not_shown(url, told):
    assert shown(url) == told


def test_wrong_credentials_stop_a_cache_from_opening_unless_it_is_told_to(redis_servers, caplog):
    server = redis_servers(password="right")
    wrong = server.url.replace("right", "wrong")
    for url in (wrong, wrong.replace(":wrong@", "")):
        with pytest.raises(Denied, match="Redis lets nobody in"):
            open_backend_at(url)
    lenient = open_backend_at(wrong, required=False)
    assert lenient.down
    assert "nothing is served" in caplog.text
    with pytest.raises(StoreError):
        lenient.get(1)
    lenient.close()
    open_backend_at(server.url).close()


@pytest.mark.skipif(not INITDB, reason=NO_POSTGRES)
def test_a_postgresql_that_lets_nobody_in_is_told_from_one_that_is_away(postgres_server):
    with pytest.raises(Denied, match='role "stranger" does not exist'):
        open_backend_at(postgres_server.url.replace("recollect@", "stranger@"))
    with pytest.raises(Denied, match='database "nowhere" does not exist'):
        open_backend_at(postgres_server.url.replace("/postgres?", "/nowhere?"))
    away = "postgresql://nobody@127.0.0.1:1/none"
    with pytest.raises(Unreachable):
        open_backend_at(away, required=True)
    open_backend_at(away).close()


def test_requests_are_told_apart_before_the_store_first_answers():
    with Answers("redis://127.0.0.1:1") as answers:
        request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        first, second, other = (
            answers.lookup(request, scope_id=name).ticket for name in ("alice", "alice", "bob")
        )
        assert first.identity == second.identity
        assert first.identity.partition != other.identity.partition
        assert not first.write


def _overwrite(backend, entry_id, record):
    if backend.name == "redis":
        backend._client.set(backend._key(f"b:{entry_id}"), record)
        return
    with backend._writing() as cursor:
        statement = backend._sql("UPDATE answers_entries SET record = ? WHERE id = ?")
        cursor.execute(statement, (record, entry_id))


def _set_schema(backend, schema):
    if backend.name == "redis":
        backend._client.hset(backend._key("about"), "schema", schema)
        return
    with backend._writing() as cursor:
        statement = backend._sql("UPDATE answers_meta SET value = ? WHERE name = 'schema'")
        cursor.execute(statement, (schema,))
