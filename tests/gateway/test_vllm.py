"""A real engine behind the gateway: vLLM on the processor, serving the zoo's model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from engines import FACTS, KNOWLEDGE
from engines import engine as knowing
from servers import gateway_before, serving, settle
from streams import assemble
from test_examples_models import ASKED, TOLD, examples, right_answers
from test_front import anthropic_client, openai_client, post, twice

from recollect.gateway.protocols import Chat, Messages

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venvs/vllm/bin/python"
MODEL = ROOT / "src/recollect/zoo/models/tiny-llama"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TEMPLATE = "{{ messages | map(attribute='content') | join('\n') }}"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
ASK = [{"role": "user", "content": "def add(a, b):"}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM in .venvs/vllm: make vllm"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Address of `vllm serve` with the zoo's Llama under the name `tiny`."""
    folder = tmp_path_factory.mktemp("engine")
    for name in FILES:
        shutil.copy(MODEL / name, folder)
    (folder / "template.jinja").write_text(TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder), "--host", "127.0.0.1", "--port", port,
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
        "--block-size", "32", "--max-model-len", "1024",
        "--chat-template", str(folder / "template.jinja"),
    ]  # fmt: skip
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, stdout=out, stderr=out, env={**os.environ, **SETTINGS}, cwd=folder
        )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 700
        while not is_up(address):
            tail = log.read_text(errors="replace")[-3000:]
            assert process.poll() is None, f"vLLM ended: {tail}"
            assert time.monotonic() < end, f"vLLM did not start: {tail}"
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def is_up(address):
    try:
        return httpx.get(f"{address}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def address(engine):
    with gateway_before(engine, keep=frozenset({"stop", "length"})) as (found, _):
        yield found


def test_models_are_the_engines(address):
    assert [model.id for model in openai_client(address).models.list()] == ["tiny"]


def test_the_openai_client_reads_hits_and_misses(address):
    client = openai_client(address)
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0.0}
    documents = twice(lambda: client.chat.completions.create(**ask))
    assert documents[0] == documents[1]
    assert documents[0].usage.completion_tokens > 0
    options = {"include_usage": True}
    streams = twice(
        lambda: list(client.chat.completions.create(**ask, stream=True, stream_options=options))
    )
    texts = ["".join(c.choices[0].delta.content or "" for c in s if c.choices) for s in streams]
    assert texts[0] == texts[1] == documents[0].choices[0].message.content
    assert streams[0][-1].usage == streams[1][-1].usage == documents[0].usage
    texts = twice(
        lambda: client.completions.create(model="tiny", prompt="import os\n", max_tokens=8, n=2)
    )
    assert texts[0] == texts[1]
    assert len(texts[0].choices) == 2


def test_replays_are_byte_equal_documents(address):
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 9, "seed": 7, "n": 2, "logprobs": True}
    bodies = [post(address, ask) for _ in range(2)]
    assert bodies[0].status_code == 200
    assert [body.headers["x-recollect-cache"] for body in bodies] == ["miss", "hit"]
    assert bodies[0].content == bodies[1].content
    streams = [post(address, {**ask, "stream": True}) for _ in range(2)]
    assert [stream.headers["x-recollect-cache"] for stream in streams] == ["miss", "hit"]
    first, second = (assemble(Chat(), stream.content) for stream in streams)
    assert first == second
    assert len(first["choices"]) == 2


def test_the_anthropic_client_reads_hits_and_misses(address):
    client = anthropic_client(address)
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 8}
    messages = twice(lambda: client.messages.create(**ask))
    assert messages[0] == messages[1]
    streams = [post(address, {**ask, "stream": True}, "/v1/messages") for _ in range(2)]
    assert [stream.headers["x-recollect-cache"] for stream in streams] == ["miss", "hit"]
    assert assemble(Messages(), streams[0].content) == assemble(Messages(), streams[1].content)


def test_the_openai_client_reads_responses(address):
    client = openai_client(address)
    ask = {"model": "tiny", "input": "def add(a, b):", "max_output_tokens": 8, "store": False}
    found = twice(lambda: client.responses.create(**ask))
    assert found[0] == found[1]
    streams = twice(lambda: list(client.responses.create(**ask, stream=True)))
    assert streams[0][-1].response == streams[1][-1].response


def test_identical_requests_at_once_are_one_generation(address, engine):
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 200, "seed": 3, "ignore_eos": True}
    before = generations(engine)
    with ThreadPoolExecutor(16) as pool:
        answers = [a.result() for a in [pool.submit(post, address, ask) for _ in range(16)]]
    settle()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert generations(engine) == before + 1


def test_a_small_engine_answers_with_past_answers_of_a_large_one(engine):
    with serving(knowing("large", KNOWLEDGE)) as large:
        settings = {
            "models": {"tiny": engine, "large": large},
            "examples": examples(small="tiny"),
            "keep": frozenset({"stop", "length"}),
        }
        with gateway_before(engine, **settings) as (address, parts):
            assert right_answers(address, "tiny", ASKED) == 0
            assert right_answers(address, "large", TOLD) == len(FACTS)
            assert right_answers(address, "auto", ASKED) == len(FACTS)
            [row] = parts.board.as_dict()["routed"]
            assert (row["model"], row["requests"], row["helped"]) == ("tiny", 3, 3)


def generations(engine):
    """Requests the engine has finished, by its own metrics."""
    lines = httpx.get(f"{engine}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("vllm:request_success_total")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_errors_of_the_engine_pass_and_are_not_stored(address):
    for _ in range(2):
        answer = post(address, {"model": "huge", "messages": ASK})
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]
        assert answer.headers["x-recollect-cache"] == "miss"
