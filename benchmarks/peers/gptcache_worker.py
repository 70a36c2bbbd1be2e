"""GPTCache on queries whose vectors are given; runs in its own environment, see make_env.py.

    .venvs/gptcache/bin/python gptcache_worker.py JOB.npz RESULT.json

JOB holds stored (N,), stored_vectors (N, D), asked (M,), asked_vectors (M, D). Its default
pipeline: last message as key, SQLite for answers, FAISS for vectors, search distance with the
default threshold 0.8, which on unit vectors is a cosine of 0.6.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from gptcache import Cache, Config
from gptcache.adapter.api import get
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation


def main() -> None:
    """Store, then ask; times are seconds of one thread, one request after the other."""
    job = np.load(sys.argv[1])
    texts = [*job["stored"].tolist(), *job["asked"].tolist()]
    vectors = np.concatenate([job["stored_vectors"], job["asked_vectors"]])
    known = dict(zip(texts, vectors, strict=True))
    folder = os.path.dirname(os.path.abspath(sys.argv[2]))  # it flushes when the process ends
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: known[text],
        data_manager=get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{folder}/cache.db"),
            VectorBase("faiss", dimension=vectors.shape[1], index_path=f"{folder}/index"),
            max_size=100_000,
        ),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=0.8),
    )
    stored = job["stored"].tolist()
    cache.import_data(stored, [str(number) for number in range(len(stored))])
    answers, times = [], []
    cpu = time.process_time()
    for text in job["asked"].tolist():
        start = time.perf_counter()
        answers.append(get(text, cache_obj=cache))
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    result = {"processor_seconds": cpu, "times": times}
    with open(sys.argv[2], "w") as file:
        json.dump(result | {"answers": answers}, file)


if __name__ == "__main__":
    main()
