"""GPTCache's exact match on given prompts; runs in its own environment, see make_env.py.

    .venvs/gptcache/bin/python gptcache_exact_worker.py JOB.json RESULT.json

JOB holds prompts (stored) and asked. Its own default: the prompt is the key, answers in a map in
memory. Times are seconds of one thread, one request after the other.
"""

from __future__ import annotations

import json
import sys
import time

from gptcache import Cache
from gptcache.adapter.api import get, put
from gptcache.manager import get_data_manager
from gptcache.processor.pre import get_prompt


def main() -> None:
    with open(sys.argv[1]) as file:
        job = json.load(file)
    cache = Cache()
    manager = get_data_manager(  # it flushes to that file when the process ends
        data_path=f"{sys.argv[2]}.map", max_size=2 * len(job["prompts"])
    )
    cache.init(pre_embedding_func=get_prompt, data_manager=manager)
    for prompt in job["prompts"]:
        put(prompt, f"answer to {prompt}", cache_obj=cache)
    times = []
    cpu = time.process_time()
    for prompt in job["asked"]:
        start = time.perf_counter()
        answer = get(prompt, cache_obj=cache)
        times.append(time.perf_counter() - start)
        assert answer == f"answer to {prompt}"
    cpu = time.process_time() - cpu
    with open(sys.argv[2], "w") as file:
        json.dump({"times": times, "processor_seconds": cpu}, file)


if __name__ == "__main__":
    main()
