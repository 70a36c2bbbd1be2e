"""Runs inside the vLLM environment: one engine, driven by JSON lines over a unix socket.

python engine_process.py SOCKET '{"model": …, "connector": {…} or null, "engine": {…}}'
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "skip_tokenizer_init": True,
    "disable_log_stats": False,
    "prefix_caching_hash_algo": "sha256_cbor",
}


class Driver:
    """Answers one command after the other."""

    def __init__(self, config: dict[str, Any]) -> None:
        from vllm.config import KVTransferConfig

        from vllm import LLM

        connector = config["connector"]
        transfer = KVTransferConfig(**connector) if connector else None
        settings = {**ENGINE, **config.get("engine", {})}
        self.llm = LLM(config["model"], kv_transfer_config=transfer, **settings)

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int = 8,
        salt: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Greedy continuation of prompts given as token ids."""
        from vllm import SamplingParams

        extra = {"kv_transfer_params": params} if params else None
        sampling = SamplingParams(
            max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False, extra_args=extra
        )
        asked = [
            {"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})}
            for prompt in prompts
        ]
        started = time.perf_counter()
        found = self.llm.generate(asked, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        return [
            {
                "tokens": list(one.outputs[0].token_ids),
                "cached": one.num_cached_tokens,
                "reason": one.outputs[0].finish_reason,
                "params": one.kv_transfer_params,
                "seconds": seconds,
            }
            for one in found
        ]

    def forget(self, store: bool = False) -> bool:
        """Drop the engine's own prefix cache, and the connector's if `store`."""
        return self.llm.reset_prefix_cache(reset_connector=store)

    def metrics(self) -> dict[str, float]:
        """Counters by name."""
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            if hasattr(metric, "value"):
                found[metric.name] = found.get(metric.name, 0) + metric.value
        return found


def main() -> None:
    """Command line."""
    os.environ.update({k: os.environ.get(k, v) for k, v in SETTINGS.items()})
    path, config = sys.argv[1], json.loads(sys.argv[2])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        stream = connection.makefile("rw")
        driver = Driver(config)
        print(json.dumps({"ready": True}), file=stream, flush=True)
        for line in stream:
            command = json.loads(line)
            if command["do"] == "stop":
                break
            try:
                answer = getattr(driver, command.pop("do"))(**command)
                print(json.dumps({"answer": answer}), file=stream, flush=True)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                print(json.dumps({"error": message}), file=stream, flush=True)
        driver.llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
