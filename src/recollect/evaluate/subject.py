"""The model under test: loading a checkpoint (the zoo's, a folder, a hub id) with its tokenizer.

Everything that can be wrong with a path or a checkpoint becomes a one-line `HostError` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recollect import zoo
from recollect.errors import HostError
from recollect.kv.fingerprint import fingerprint

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16,
          "float16": torch.float16}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model with its tokenizer.

    Attributes:
        name: what the user called it.
        model: a transformers causal language model in eval mode.
        tokenizer: its tokenizer.
    """

    name: str
    model: Any
    tokenizer: Any

    @property
    def limit(self) -> int | None:
        """Longest sequence the model was made for; None where its config does not say."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def describe(self) -> dict[str, Any]:
        """What identifies the model in a run's record."""
        config = self.model.config.get_text_config()
        return {
            "name": self.name,
            "type": config.model_type,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layers": config.num_hidden_layers,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "context": self.limit,
            "fingerprint": fingerprint(self.model),
        }

    def check_length(self, tokens: int) -> None:
        """Refuse sequences longer than the model's context."""
        if self.limit is not None and tokens > self.limit:
            raise HostError(
                f"{tokens} tokens are needed but the context of {self.name} is {self.limit}; "
                f"lower --length by at least {tokens - self.limit}"
            )


def load(name: str, *, dtype: str = "auto", device: str = "cpu") -> Subject:
    """Load a zoo name, a checkpoint folder or a hub id.

    Raises HostError with one line that says what is wrong.
    """
    source = name
    if name in zoo.names():
        source = zoo.path(name)
    elif not Path(name).exists() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise HostError(
            f"no checkpoint at '{name}'; give a folder with config.json and safetensors, a hub id, "
            f"or a model of the zoo ({', '.join(zoo.names())})"
        )
    elif Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise HostError(f"'{name}' is not a checkpoint folder: it has no config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype])
        model = model.to(device).eval()
    except Exception as error:  # transformers, safetensors and the hub raise whatever they like
        raise HostError(f"cannot load '{name}': {_first_line(error)}") from error
    return Subject(Path(name).name if Path(name).exists() else name, model, tokenizer)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
