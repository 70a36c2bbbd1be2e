"""An encoder from an ONNX file and its tokenizer.json: no torch, no transformers, no network.

For sentence encoders exported with the inputs `input_ids` and `attention_mask` (and perhaps
`token_type_ids`) and meant for mean pooling. Needs the extra ``onnx``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recollect.answers.encoders.windows import WindowedEncoder
from recollect.errors import HostError, RecipeError

INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
MISSING = "the ONNX encoder needs its runtime: pip install recollect[onnx]"


class OnnxEncoder(WindowedEncoder):
    """Mean of the model's token vectors; see `WindowedEncoder` for texts beyond its window.

    Safe to use from several threads.

    Arguments:
        model: the ONNX file. Its first output of three axes is taken: (B, T, D).
        tokenizer: tokenizer.json; the one beside the model by default.
        batch: texts per forward pass.
        window: word pieces per window, special ones included; at most what the model was trained
            for, which an ONNX file does not say.
        long: what happens to longer texts.
        threads: of the runtime; None leaves it to the runtime.
    """

    def __init__(
        self,
        model: str | Path,
        tokenizer: str | Path | None = None,
        *,
        batch: int = 64,
        window: int = 256,
        long: Literal["window", "refuse"] = "window",
        threads: int | None = None,
    ) -> None:
        self.path = Path(model)
        self.tokenizer_path = Path(tokenizer or self.path.parent / "tokenizer.json")
        for path in (self.path, self.tokenizer_path):
            if not path.is_file():
                raise HostError(
                    f"no file {path}: the ONNX encoder needs a model and tokenizer.json"
                )
        self._tokenizer, self._session = (
            _tokenizer(self.tokenizer_path),
            _session(self.path, threads),
        )
        self._names = {given.name for given in self._session.get_inputs()}
        if not {"input_ids", "attention_mask"} <= self._names <= INPUTS:
            raise HostError(f"{self.path.name} takes {sorted(self._names)}, not the inputs of BERT")
        outputs = [o for o in self._session.get_outputs() if len(o.shape or ()) == 3]
        if not outputs or not isinstance(outputs[0].shape[2], int):
            raise HostError(f"{self.path.name} gives no token vectors of a known width (B, T, D)")
        self._output = outputs[0].name
        dim = outputs[0].shape[2]
        super().__init__(dim, batch=batch, window=window, most=1 << 16, long=long)

    @cached_property
    def encoder_id(self) -> str:
        """Width, digest of the model's files and its tokenizer's, and the reading."""
        digest = hashlib.sha256()
        # Large models keep their weights in files beside them that start with the model's name.
        for path in (*sorted(self.path.parent.glob(f"{self.path.name}*")), self.tokenizer_path):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"onnx-d{self.dim}-{digest.hexdigest()[:12]}-w{self.window}-{self.long}"

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    def _ends(self) -> tuple[int, int]:
        ends = self._tokenizer.encode("").ids
        if len(ends) != 2:
            raise HostError(f"{self.tokenizer_path} puts {len(ends)} special pieces around a text")
        return ends[0], ends[1]

    def _forward(self, windows: Sequence[Sequence[int]]) -> np.ndarray:
        width = max(map(len, windows))
        ids, mask = np.zeros((2, len(windows), width), np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        wanted = {name: value for name, value in given.items() if name in self._names}
        [hidden] = self._session.run([self._output], wanted)
        weights = mask[..., None].astype(np.float32)
        return (hidden * weights).sum(1) / weights.sum(1)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise HostError(MISSING) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise RecipeError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_truncation()  # files of sentence encoders often cut at 128 pieces
    tokenizer.no_padding()
    return tokenizer


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime as runtime
    except ImportError:
        raise HostError(MISSING) from None
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no other parent
        raise RecipeError(f"{path} is no model that ONNX Runtime reads: {error}") from error
