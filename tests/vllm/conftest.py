"""Models and engines that the tests share: starting one takes half a minute."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_client import (
    ABSENT,
    ONE_PROCESS,
    PYTHON,
    Engine,
    connector,
    copy_zoo_model,
    make_wide_model,
    threads,
)  # fmt: skip


@pytest.fixture(scope="session")
def zoo_model(tmp_path_factory):
    """The zoo's Llama as vLLM wants it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    copy_zoo_model(folder)
    return folder


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory):
    """A random Llama of four layers and width 512."""
    folder = tmp_path_factory.mktemp("wide")
    make_wide_model(folder)
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """The disk tier of all engines."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    """The file that tells the first engine's store what to do wrong."""
    return tmp_path_factory.mktemp("faults") / "plan.json"


@pytest.fixture(scope="session")
def engines(zoo_model, shared_folder, faults):
    """Three engines side by side: without a store, with one, and a consumer of the same disk."""
    if not PYTHON.exists():
        pytest.skip(ABSENT)
    # A tiny model computes so fast that it would depend on the moment what is worth loading.
    store = {
        "path": str(shared_folder), "host": "64MiB", "chunk": 64, "namespace": "tests",
        "admission": "always",
    }  # fmt: skip
    first = connector("auto", store_factory="faulty_store:open_store", **store)
    second = connector("async", role="kv_consumer", lookup_seconds=5.0, **store)
    one = {**ONE_PROCESS, **threads(3)}
    started = {
        "plain": Engine(zoo_model, None, environment=one, max_model_len=2048),
        "first": Engine(
            zoo_model, first, environment={**threads(3), "RECOLLECT_FAULTS": str(faults)},
            max_model_len=2048, num_gpu_blocks_override=160,
            kv_events_config={"enable_kv_cache_events": True, "publisher": "null"},
        ),
        "second": Engine(zoo_model, second, environment=one, max_model_len=2048),
    }  # fmt: skip
    try:
        yield {name: engine.wait() for name, engine in started.items()}
    finally:
        for engine in started.values():
            engine.stop()
        for engine in started.values():
            engine.close()
