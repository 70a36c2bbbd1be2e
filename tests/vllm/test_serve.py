"""`recollect serve`: the command it makes, and what it says where vLLM is missing."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from engine_client import ABSENT, PYTHON

from recollect import zoo
from recollect.cli import main
from recollect.errors import HostError
from recollect.vllm import launch


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(launch, "require", lambda: "0.32.0")
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(launch.importlib.metadata, "version", lambda name: "0.32.0")


def run(*arguments):
    return CliRunner().invoke(main, ["serve", *arguments])


def test_the_model_may_follow_serve_directly(with_vllm):
    for words in (["org/model"], ["engine", "org/model"]):
        result = run(*words, "--path", "/srv/kv", "--chunk", "128", "--port", "8001", "--dry-run")
        assert result.exit_code == 0, result.output
        words = shlex.split(result.output)
        assert words[2:5] == ["vllm.entrypoints.cli.main", "serve", "org/model"]
        assert words[-2:] == ["--port", "8001"]
        config = json.loads(words[words.index("--kv-transfer-config") + 1])
        assert config["kv_connector_extra_config"] == {"path": "/srv/kv", "chunk": 128}
        assert config["kv_load_failure_policy"] == "recompute"
        assert "sha256_cbor" in words


def test_builds_of_another_name_serve_through_the_module(with_vllm, monkeypatch):
    def absent(name):
        raise launch.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(launch.importlib.metadata, "version", absent)
    words = shlex.split(run("org/model", "--dry-run").output)
    assert words[2:5] == ["vllm.entrypoints.openai.api_server", "--model", "org/model"]


def test_roles_for_disaggregated_prefill(with_vllm):
    result = run("org/model", "--role", "kv_producer", "--remote", "redis://kv", "--json")
    words = json.loads(result.output)
    assert json.loads(words[words.index("--kv-transfer-config") + 1])["kv_role"] == "kv_producer"


@pytest.mark.parametrize("argument", ["--kv-transfer-config", "--prefix-caching-hash-algo=xxhash"])
def test_what_is_set_here_cannot_be_given(with_vllm, argument):
    result = run("org/model", "--dry-run", argument, "{}")
    assert result.exit_code == 2
    assert "leave it out" in result.output


def test_without_vllm_one_line_says_what_to_install(monkeypatch):
    def missing():
        raise HostError("vLLM is not installed here: pip install recollect[vllm]")

    monkeypatch.setattr(launch, "require", missing)
    result = run("org/model")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "pip install recollect[vllm]" in result.output


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_of_the_zoo_holds_no_other_weights_than_its_own(with_vllm, name):
    words = shlex.split(run(f"zoo/{name}", "--dry-run").output)
    folder = Path(words[4])
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]


CONTRACT = """
import importlib.metadata, inspect, json
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1 as Base
from vllm.plugins import load_general_plugins
from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.config import KVTransferConfig
from recollect.vllm import plugin
import recollect.vllm.connector as ours

load_general_plugins(); plugin.register(); plugin.register()
named = KVConnectorFactory.get_connector_class(KVTransferConfig(
    kv_connector="RecollectConnector", kv_role="kv_both"))
by_path = KVConnectorFactory.get_connector_class(KVTransferConfig(
    kv_connector="RecollectConnector", kv_connector_module_path="recollect.vllm.connector",
    kv_role="kv_both"))
def shape(cls, hook):
    found = inspect.getattr_static(cls, hook)
    if isinstance(found, property):
        return "property"
    found = inspect.unwrap(getattr(cls, hook))
    return [(p.name, str(p.kind)) for p in inspect.signature(found).parameters.values()]
hooks = [n for n in vars(ours.RecollectConnector) if hasattr(Base, n) and not n.startswith("_")]
from types import SimpleNamespace
from recollect.vllm.events import EventBook

book = EventBook(chunk=64, hashed=32, shared=True)
asked = SimpleNamespace(block_hashes=[bytes([n]) * 32 for n in range(4)], lora_request=None,
                        all_token_ids=list(range(150)), session_id=None)
for at, key in enumerate((b"first", b"second")):
    book.ordered(key, asked, at)
book.committed([b"second", b"unknown"])
book.lost([b"second", b"unknown"])
stored, removed = book.take()
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
hashes = [maybe_convert_block_hash(h) for h in asked.block_hashes]
assert not book.take()
assert stored.block_hashes == removed.block_hashes == hashes[2:]
assert stored.parent_block_hash == hashes[1]
assert (stored.token_ids, stored.block_size) == (list(range(64, 128)), 32)
assert stored.medium == removed.medium == "STORAGE"

print(json.dumps({
    "named": named is ours.RecollectConnector and by_path is named,
    "abstract": sorted(ours.RecollectConnector.__abstractmethods__),
    "differ": [n for n in hooks if shape(Base, n) != shape(ours.RecollectConnector, n)],
    "hooks": hooks,
    "spec": OffloadingSpecFactory.get_spec_cls({"spec_name": "RecollectOffloadingSpec"}).__name__,
    "tier": SecondaryTierFactory.get_tier_class({"type": "recollect"}).__name__,
    "policies": {n: CachePolicyFactory.get_cache_policy_cls(n).spec
                 for n in ("s3fifo", "sieve", "gdsf", "lfu", "ttl")},
    "command": __import__("recollect.vllm.launch", fromlist=["command"]).command("m", {})[1:5],
}))
"""


@pytest.mark.skipif(not PYTHON.exists(), reason=ABSENT)
def test_every_hook_has_the_signature_vllm_calls():
    """By entry point, by module path, and hook by hook, in the environment that has vLLM."""
    result = subprocess.run(
        [str(PYTHON), "-c", CONTRACT], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["named"]
    assert found["abstract"] == []
    assert found["differ"] == []
    assert len(found["hooks"]) >= 20
    assert (found["spec"], found["tier"]) == ("RecollectOffloadingSpec", "StoreTier")
    assert all(name == spec for name, spec in found["policies"].items())
    assert (
        found["command"][1] == "vllm.entrypoints.openai.api_server"
    )  # the CPU build has another name
