"""Engines that come and go: what one stored, the next one finds on disk or in Redis.

The first engine only produces, and is stopped at once; then one is started on its folder, and a
consumer on its Redis, which shares no disk with it.
"""

import uuid

import pytest
from engine_client import ABSENT, ONE_PROCESS, PYTHON, Engine, connector, threads
from test_engine import CHUNK, prompt, texts

pytestmark = pytest.mark.slow

PROMPTS = [prompt(("restart", n), 150 + 40 * n) for n in range(4)]
POSSIBLE = [len(one) // CHUNK * CHUNK for one in PROMPTS]  # none is a multiple of the chunk


@pytest.fixture(scope="module")
def truth(engines):
    """Texts of the engine without a store."""
    return texts(engines["plain"].generate(PROMPTS, tokens=6))


@pytest.fixture(scope="module")
def tiers(tmp_path_factory, redis_url):
    return {
        "path": str(tmp_path_factory.mktemp("restart")),
        "remote": redis_url,
        "namespace": uuid.uuid4().hex,
        "chunk": CHUNK,
    }


@pytest.fixture(scope="module")
def produced(zoo_model, tiers, truth):
    """What a strict producer answered, twice; it has ended since."""
    if not PYTHON.exists():
        pytest.skip(ABSENT)
    engine = Engine(
        zoo_model, connector("auto", "kv_producer", host="64MiB", **tiers),
        environment={**ONE_PROCESS, **threads(1)}, max_model_len=2048,
    )  # fmt: skip
    try:
        first = engine.wait().generate(PROMPTS, tokens=6)
        engine.forget()
        return first, engine.generate(PROMPTS, tokens=6)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def heirs(zoo_model, tiers, produced):
    """An engine on the folder, and a strict consumer of the Redis, side by side."""
    disk = {**tiers, "remote": None}
    redis = {**tiers, "path": None}
    patient = {"lookup_seconds": 10.0, "admission": "always"}
    started = {
        "disk": connector("auto", host="64MiB", **patient, **disk),
        "redis": connector("auto", "kv_consumer", host=None, **patient, **redis),
    }
    engines = {
        name: Engine(
            zoo_model, transfer, environment={**ONE_PROCESS, **threads(2)}, max_model_len=2048
        )
        for name, transfer in started.items()
    }
    try:
        yield {name: engine.wait() for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.stop()
        for engine in engines.values():
            engine.close()


def test_a_producer_saves_and_announces_and_never_loads(produced, truth):
    first, again = produced
    assert texts(first) == texts(again) == truth
    assert [one["cached"] for one in first + again] == [0] * 8
    announced = [one["params"]["recollect_chunks"] for one in first + again]
    assert announced == [len(one) // CHUNK for one in PROMPTS] * 2


def test_after_a_restart_the_disk_has_all_that_was_stored(heirs, truth):
    answers = heirs["disk"].generate(PROMPTS, tokens=6)
    assert texts(answers) == truth
    assert [one["cached"] for one in answers] == POSSIBLE


def test_a_consumer_finds_all_in_redis_and_saves_nothing(heirs, truth, produced):
    engine = heirs["redis"]
    new = prompt("only the consumer saw this", 200)
    for one, before, wanted, possible in zip(PROMPTS, produced[0], truth, POSSIBLE, strict=True):
        (answer,) = engine.generate([one], tokens=6, params=before["params"])
        assert (answer["tokens"], answer["cached"]) == (wanted, possible)
    for _ in range(2):
        assert engine.generate([new], tokens=1)[0]["cached"] == 0
        engine.forget()
    counts = engine.metrics()
    assert counts["vllm:recollect_loaded_tokens"] == sum(POSSIBLE)
    assert counts["vllm:recollect_saved_tokens"] == 0
