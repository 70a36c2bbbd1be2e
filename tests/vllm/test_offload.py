"""vLLM's own offloading framework with our spec, policies and tiers, on a CPU engine."""

import random
import subprocess

import pytest
from engine_client import ABSENT, ONE_PROCESS, PYTHON, Engine


def prompt(seed, length):
    draw = random.Random(seed)
    return [draw.randrange(8, 2000) for _ in range(length)]


def offloading(tiers, **extra):
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "RecollectOffloadingSpec",
            "spec_module_path": "recollect.vllm.offload",
            "eviction_policy": "s3fifo",
            "cache_policy_module_path": "recollect.vllm.policies",
            "block_size": 64,
            "secondary_tiers": [
                {"type": "StoreTier", "module_path": "recollect.vllm.offload_tiers", **tier}
                for tier in tiers
            ],
            **extra,
        },
    }


@pytest.fixture(scope="module")
def engine(wide_model, tmp_path_factory, redis_url):
    """Host, disk and Redis. The host tier holds six prompts of 256 tokens."""
    if not PYTHON.exists():
        pytest.skip(ABSENT)
    tiers = [{"path": str(tmp_path_factory.mktemp("disk"))}, {"remote": redis_url}]
    per_token = 4 * 2 * 8 * 64 * 4  # layers, K and V, heads, width, bytes
    config = offloading(tiers, cpu_bytes_to_use=6 * 256 * per_token)
    made = Engine(
        wide_model, config, environment={**ONE_PROCESS, "OMP_NUM_THREADS": "1"}, max_model_len=1024
    )
    try:
        yield made.wait()
    finally:
        made.close()


def test_hits_from_the_host_tier_and_from_the_tiers_below(engine):
    prompts = [prompt(n, 256 + 7) for n in range(12)]
    wanted = [engine.generate([one], tokens=2)[0] for one in prompts]
    assert not any(answer["cached"] for answer in wanted)
    engine.forget()
    cached = 0
    for one, want in zip(prompts, wanted, strict=True):
        (answer,) = engine.generate([one], tokens=2)
        assert answer["tokens"] == want["tokens"]
        cached += answer["cached"]
    assert cached > 0.9 * 12 * 256  # twice what the host tier holds
    counts = engine.metrics()
    assert counts["vllm:kv_offload_load_bytes"] > 0
    assert counts.get("vllm:kv_offload_tiering_promotion_job_failures", 0) == 0


def test_salts_share_nothing(engine):
    one = prompt("salted", 300)
    (first,) = engine.generate([one], tokens=2, salt="a")
    engine.forget()
    (other,) = engine.generate([one], tokens=2, salt="b")
    assert other["tokens"] == first["tokens"]
    assert other["cached"] == 0


POLICY_CHECK = """
from vllm.v1.kv_offload.base import ReqContext
from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus
from recollect.vllm import policies

for name in ("lru", "lfu", "s3fifo", "sieve", "gdsf", "ttl"):
    policy, context = getattr(policies, name)(8), ReqContext("r")
    keys = [n.to_bytes(8, "little") * 4 + bytes(4) for n in range(40)]

    def enter(n):
        policy.on_store_miss([keys[n]], context)
        out = policy.evict(1, set()) if len(policy._chunks) == 8 else []
        assert out is not None and (len(out) == 1) == (n >= 8), name
        chunk = ChunkStatus(n)
        policy.insert(keys[n], chunk)
        chunk.ref_cnt = 0
        policy.mark_evictable(keys[n])

    for n in range(8):
        enter(n)
    policy.get(keys[3]).ref_cnt = 1
    policy.mark_non_evictable(keys[3])                       # being read: never evicted
    assert policy.evict(8, set()) is None                    # all or nothing
    assert policy.evict(7, {keys[5]}) is None                # nor what is protected
    assert len(policy._chunks) == 8
    for n in range(8, 40):
        policy.on_request_finished([[keys[3]]], set(), {keys[3]}, context)
        enter(n)
    assert policy.get(keys[3]) is not None, name
    assert len(policy._chunks) == 8 and len(policy._keys) <= 9, name
    policy.get(keys[3]).ref_cnt = 0
    policy.mark_evictable(keys[3])
    assert len(policy.evict(8, set())) == 8
    policy.clear()
    assert policy.get(keys[3]) is None
print("fine")
"""


@pytest.mark.skipif(not PYTHON.exists(), reason=ABSENT)
def test_every_policy_is_a_cache_policy_of_vllm():
    result = subprocess.run(
        [str(PYTHON), "-c", POLICY_CHECK], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("fine")
