"""Settings, versions and names: wrong ones are refused in a line, equal ones agree anywhere."""

import hashlib
from types import SimpleNamespace

import pytest

from recollect.core.replacement import POLICIES
from recollect.errors import HostError
from recollect.vllm import plugin
from recollect.vllm.identity import ChunkKeys, checkpoint_digest, fingerprint, hashing, of_rank
from recollect.vllm.settings import Settings
from recollect.vllm.versions import require


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"hosts": "1GiB"}, "did you mean 'host'"),
        ({"load": "maybe"}, "sync, async"),
        ({"chunk": "256"}, "chunk cannot be '256'"),
        ({"save_generated": 1}, "save_generated"),
        ({"staging": -1}, "staging"),
        ({"admission": "often"}, "measured, always"),
        ({"min_load_tokens": "10"}, "min_load_tokens"),
        ({"min_load_tokens": -1}, "min_load_tokens"),
        ({"namespace": 5}, "namespace"),
    ],
)
def test_wrong_settings_are_refused(extra, message):
    with pytest.raises(HostError, match=message):
        Settings.read(extra)


def test_a_chunk_is_a_multiple_of_the_block():
    assert Settings().chunk_tokens(32) == 256
    assert Settings().chunk_tokens(48) == 240
    assert Settings().chunk_tokens(512) == 512
    assert Settings(chunk=96).chunk_tokens(32) == 96
    with pytest.raises(HostError, match="set chunk to 96"):
        Settings(chunk=100).chunk_tokens(32)


def test_a_store_of_ones_own(tmp_path):
    from recollect.store import Store

    made = Settings(path=str(tmp_path), store_factory="recollect.store:Store").open_store(
        private=True
    )
    assert isinstance(made, Store)
    made.close()
    with pytest.raises(HostError, match="store_factory"):
        Settings(store_factory="recollect.store:Stroe").open_store(private=True)


def test_the_key_for_encryption_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("RECOLLECT_TEST_KEY", raising=False)
    with pytest.raises(HostError, match="RECOLLECT_TEST_KEY is not set"):
        Settings(encryption_key_env="RECOLLECT_TEST_KEY").open_store(private=True)


@pytest.mark.parametrize("version", ["0.31.0", "0.33.1", "1.0", "nightly"])
def test_other_versions_of_vllm_are_refused(version):
    with pytest.raises(HostError, match=r"supports vLLM 0\.32"):
        require(version)


def test_the_supported_version_is_accepted():
    assert require("0.32.0") == "0.32.0"
    assert require("0.32.1+cpu") == "0.32.1+cpu"


def test_registering_without_vllm_changes_nothing():
    plugin.register()
    plugin.register()


def test_the_entry_point_names_every_policy():
    assert set(plugin.POLICIES) == set(POLICIES)


def keys_of(hashes, **changes):
    arguments = {"namespace": "default", "salt": "", "chunk": 64, "hashed": 32, **changes}
    found: list[bytes] = []
    ChunkKeys(arguments.pop("model", "m"), **arguments).extend(found, hashes)
    return found


HASHES = [hashlib.sha256(bytes([n])).digest() for n in range(7)]


def test_keys_name_full_chunks_and_grow():
    keys = keys_of(HASHES)
    assert len(keys) == 3
    assert keys_of(HASHES[:5]) == keys[:2]
    maker = ChunkKeys("m", namespace="default", salt="", chunk=64, hashed=32)
    grown: list[bytes] = []
    for n in range(len(HASHES) + 1):
        maker.extend(grown, HASHES[:n])
    assert grown == keys


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"namespace": "x"}, {"salt": "s"}, {"chunk": 128}]
)
def test_keys_differ_by_whatever_the_bytes_depend_on(change):
    assert not set(keys_of(HASHES)) & set(keys_of(HASHES, **change))


def test_after_a_reset_no_old_key_is_made():
    maker = ChunkKeys("m", namespace="default", salt="", chunk=64, hashed=32)
    before: list[bytes] = []
    maker.extend(before, HASHES)
    maker.renew(b"nonce")
    after: list[bytes] = []
    maker.extend(after, HASHES)
    assert not set(before) & set(after)


def test_every_rank_has_keys_of_its_own():
    key = HASHES[0]
    assert of_rank(key, 0) == key
    assert len({of_rank(key, rank) for rank in range(4)}) == 4


def config(folder, **changes):
    settings = {"rope_theta": 1e4, "_name_or_path": "anything", **changes}
    hf = SimpleNamespace(to_dict=lambda: settings, _commit_hash=None)
    return SimpleNamespace(
        hf_config=hf, model=str(folder), dtype="float32", quantization=None, revision=None
    )


def test_a_model_is_its_configuration_and_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100_000))
    first = fingerprint(config(tmp_path), cache_dtype="auto", ranks=1)
    assert first == fingerprint(
        config(tmp_path, _name_or_path="elsewhere"), cache_dtype="auto", ranks=1
    )
    others = [
        fingerprint(config(tmp_path, rope_theta=1e6), cache_dtype="auto", ranks=1),
        fingerprint(config(tmp_path), cache_dtype="bfloat16", ranks=1),
        fingerprint(config(tmp_path), cache_dtype="auto", ranks=2),
    ]
    (tmp_path / "model.safetensors").write_bytes(bytes(50_000) + b"\1" + bytes(49_999))
    digest = checkpoint_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\1" + bytes(99_999))
    assert digest != checkpoint_digest(tmp_path)
    others.append(fingerprint(config(tmp_path), cache_dtype="auto", ranks=1))
    assert len({first, *others}) == 5


def test_only_hashes_that_agree_between_processes_name_entries():
    assert hashing("sha256_cbor") == "sha256_cbor"
    assert hashing("sha256") != "sha256_cbor"
    with pytest.raises(HostError, match="sha256_cbor"):
        hashing("xxhash_cbor")
