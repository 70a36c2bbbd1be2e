"""vLLM's entry point `vllm.general_plugins`: makes our classes known by name.

vLLM calls `register` in the front end, in the engine core and in every worker; it imports nothing
heavy and may run any number of times.
"""

from __future__ import annotations

from contextlib import suppress

from recollect.errors import HostError
from recollect.vllm.versions import require

CONNECTOR = "RecollectConnector"
OFFLOADING = "RecollectOffloadingSpec"
TIER = "recollect"
POLICIES = ("lru", "lfu", "s3fifo", "sieve", "gdsf", "ttl")


def register() -> None:
    """Register connector, offloading spec, tier and replacement policies. Idempotent.

    An unsupported vLLM keeps working without us: the refusal is raised when the connector is asked
    for, not in every engine on the machine.
    """
    try:
        require()
    except HostError:
        return
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    connect, offload = KVConnectorFactory.register_connector, OffloadingSpecFactory.register_spec
    entries = [
        (connect, CONNECTOR, "recollect.vllm.connector", CONNECTOR),
        (offload, OFFLOADING, "recollect.vllm.offload", OFFLOADING),
        (SecondaryTierFactory.register_tier, TIER, "recollect.vllm.offload_tiers", "StoreTier"),
    ]
    policies = CachePolicyFactory.register_cache_policy
    entries += [(policies, name, "recollect.vllm.policies", name) for name in POLICIES]
    for enter, name, module, attribute in entries:
        with suppress(ValueError):  # registered before in this process, or vLLM's own `lru`
            enter(name, module, attribute)
