"""Starts engines for the tests, in the environment that has vLLM, and talks to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venvs/vllm/bin/python"
ABSENT = "needs vLLM in .venvs/vllm: make vllm"
# Scheduler and worker in the driver's process: one import of vLLM instead of three.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
START_SECONDS = 540
ANSWER_SECONDS = 540


def connector(load: str = "auto", role: str = "kv_both", **extra: Any) -> dict[str, Any]:
    """A `--kv-transfer-config`."""
    return {
        "kv_connector": "RecollectConnector",
        "kv_connector_module_path": "recollect.vllm.connector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"load": load, **extra},
    }


def make_wide_model(folder: Path) -> None:
    """A random Llama: four layers, width 512, eight heads of 64; weights from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, head_dim=64, max_position_embeddings=16384,
        tie_word_embeddings=False, initializer_range=0.08,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def copy_zoo_model(folder: Path) -> None:
    """The zoo's Llama: weights, configuration and tokenizer, nothing else."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "src/recollect/zoo/models/tiny-llama" / name, folder)


def threads(engines: int) -> dict[str, str]:
    """Environment for one of several engines that run side by side."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // engines))}


class Engine:
    """A vLLM engine in a process of its own; its methods are the commands of the driver."""

    def __init__(
        self,
        model: Path,
        transfer: dict[str, Any] | None,
        *,
        environment: dict[str, str] | None = None,
        python: Path | None = None,
        **engine: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="recollect-vllm-")
        path = str(Path(self._folder.name) / "socket")
        self.log = Path(self._folder.name) / "log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.settimeout(START_SECONDS)
        config = json.dumps({"model": str(model), "connector": transfer, "engine": engine})
        here = str(Path(__file__).parent)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(python or PYTHON),
                    str(Path(__file__).with_name("engine_process.py")),
                    path,
                    config,
                ],
                env={**os.environ, **(environment or {}), "PYTHONPATH": here},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stream: Any = None

    def wait(self) -> Engine:
        """Until it is ready. Several engines may start side by side."""
        if self._stream is None:
            connection, _ = self._listener.accept()
            connection.settimeout(START_SECONDS)
            self._stream = connection.makefile("rw")
            self._read()
            connection.settimeout(ANSWER_SECONDS)
        return self

    def generate(self, prompts: list[list[int]], **arguments: Any) -> list[dict[str, Any]]:
        """Greedy continuations: tokens, cached, reason, params."""
        answer: list[dict[str, Any]] = self._ask("generate", prompts=prompts, **arguments)
        return answer

    def forget(self, store: bool = False) -> bool:
        """Drop the engine's own prefix cache."""
        answer: bool = self._ask("forget", store=store)
        return answer

    def metrics(self) -> dict[str, float]:
        """Counters by name."""
        answer: dict[str, float] = self._ask("metrics")
        return answer

    def stop(self) -> None:
        """Ask it to end, without waiting."""
        if self._stream is not None and self.process.poll() is None:
            with suppress(OSError):
                print(json.dumps({"do": "stop"}), file=self._stream, flush=True)

    def close(self) -> None:
        """End it in good order, or by force with all its processes."""
        self.stop()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60 if self._stream is not None else 0)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._listener.close()
        self._folder.cleanup()

    def _ask(self, command: str, **arguments: Any) -> Any:
        self.wait()
        print(json.dumps({"do": command, **arguments}), file=self._stream, flush=True)
        return self._read()["answer"]

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])
            raise AssertionError(f"the engine died:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer
