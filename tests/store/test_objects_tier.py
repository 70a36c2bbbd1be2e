"""The object tier: in memory, in a folder, and on a server that speaks S3."""

import logging
import uuid

import pytest
from contract import BODY, KEYS, TierContract, read

from recollect.errors import StoreError
from recollect.store.tiers.guarded import Denied, GuardedTier, Unreachable
from recollect.store.tiers.objects import ObjectTier


class TestContractInMemory(TierContract):
    @pytest.fixture
    def tier(self):
        return ObjectTier("memory:///", count_every=0)


class TestContractInAFolder(TierContract):
    @pytest.fixture
    def tier(self, tmp_path):
        return ObjectTier(f"file://{tmp_path}/not there yet", count_every=0)


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3, with an empty bucket; the settings that reach it."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    config = {
        "aws_endpoint": f"http://{host}:{port}",
        "aws_access_key_id": "anyone",
        "aws_secret_access_key": "anything",
        "aws_region": "us-east-1",
    }
    yield config
    server.stop()


@pytest.fixture
def bucket(s3):
    """Settings and the URL of a bucket of its own."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3["aws_endpoint"], region_name=s3["aws_region"],
        aws_access_key_id="anyone", aws_secret_access_key="anything",
    )  # fmt: skip
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return {"url": f"s3://{name}/folder", "config": s3, "client": {"allow_http": True}}


class TestContractOnS3(TierContract):
    @pytest.fixture
    def tier(self, bucket):
        return ObjectTier(**bucket, count_every=0)


def test_large_objects_on_s3(bucket):
    tier = ObjectTier(**bucket)
    body = BODY * 1100  # more than one part of a multipart upload
    assert tier.put(KEYS[0], body)
    assert read(tier, KEYS[0]) == body


def test_two_processes_that_write_one_key_both_find_it(tmp_path):
    one, other = (ObjectTier(f"file://{tmp_path}") for _ in range(2))
    first, second = one.reserve(KEYS[0], 4), other.reserve(KEYS[0], 4)
    for reservation in (first, second):
        reservation.write(b"same")
    second.commit()
    first.commit()
    assert read(one, KEYS[0]) == read(other, KEYS[0]) == b"same"


def test_entries_outlive_the_process(tmp_path):
    ObjectTier(f"file://{tmp_path}").put(KEYS[0], BODY)
    again = ObjectTier(f"file://{tmp_path}")
    assert read(again, KEYS[0]) == BODY
    assert list(again.keys()) == [KEYS[0]]


@pytest.mark.parametrize("namespace", ["plain", "=", "../up", "a/b", "", "ü %", "."])
def test_namespaces_see_nothing_of_each_other(tmp_path, namespace):
    url = f"file://{tmp_path / 'root'}"
    mine, other = ObjectTier(url, namespace=namespace), ObjectTier(url, namespace="other")
    assert mine.put(KEYS[0], BODY)
    assert list(mine.keys()) == [KEYS[0]]
    assert list(other.keys()) == []
    assert read(other, KEYS[0]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_foreign_files_are_no_entries(tmp_path):
    tier = ObjectTier(f"file://{tmp_path}")
    tier.put(KEYS[0], BODY)
    (tmp_path / "default" / "README").write_text("hello")
    (tmp_path / "default" / "abcd").write_text("too short")
    assert list(tier.keys()) == [KEYS[0]]


def test_a_run_longer_than_what_is_asked_at_once():
    tier = ObjectTier("memory:///")
    keys = [i.to_bytes(32, "big") for i in range(50)]
    for key in keys[:40]:
        tier.put(key, b"x")
    assert tier.leading(keys) == 40
    assert tier.leading(keys[:40]) == 40


def test_a_service_that_is_not_there_is_unreachable_and_guarded():
    options = {
        "config": {"aws_endpoint": "http://127.0.0.1:1", "aws_region": "us-east-1",
                   "aws_access_key_id": "a", "aws_secret_access_key": "b"},
        "client": {"allow_http": True},
        "retries": 0,
    }  # fmt: skip
    tier = ObjectTier("s3://bucket/folder", **options)
    with pytest.raises(Unreachable, match="s3://bucket/folder does not answer"):
        tier.get(KEYS[0])
    with pytest.raises(Unreachable):
        tier.reserve(KEYS[0], 4)
    assert tier._being_written == set()
    assert GuardedTier(tier).get(KEYS[0]) is None


def test_refused_access_is_told_apart(tmp_path, monkeypatch):
    from obstore import exceptions

    def refuse(*_):
        raise exceptions.PermissionDeniedError("403 Forbidden\nlong story")

    monkeypatch.setattr("obstore.head", refuse)
    with pytest.raises(Denied, match=r"credentials.*403 Forbidden\)$"):
        ObjectTier("memory:///").contains(KEYS[0])


def test_other_urls_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no object store"):
        ObjectTier("ftp://somewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        ObjectTier(f"file://{tmp_path}/file/folder")
