"""From text to token ids: tokenizing contexts and questions apart, with or without a chat template.

Context and question are tokenized separately, since a cache is compressed before the question is
known; the question and its answer are tokenized together, as the model would read them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from recollect.errors import HostError, RecipeError

_SLOT = "<<recollect-context>>"
_QUESTION = "<<recollect-question>>"


class Encoder:
    """Encodes the parts of a prompt for one tokenizer.

    Attributes:
        chat: whether the tokenizer's chat template is wrapped around context and question.
    """

    def __init__(self, tokenizer: Any, *, chat: bool = False) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self._before, self._after = self._template() if chat else ("", "")

    def count(self, lines: list[str]) -> list[int]:
        """Tokens of each line by itself."""
        if not lines:
            return []
        encoded = self.tokenizer(lines, add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def context(self, text: str) -> torch.Tensor:
        """Ids (T,) of a context, special first tokens and the template's opening included."""
        ids = self.tokenizer(self._before + text, add_special_tokens=not self.chat)["input_ids"]
        return torch.tensor(_without_end(ids, self.tokenizer), dtype=torch.int64)

    def parts(self, question: str, *answer: str) -> list[torch.Tensor]:
        """Ids of a question and of the parts of its answer, tokenized as one text.

        A token that spans a border belongs to the later part, which the model has to produce; so
        every second part of the answer (a space between two words) may be empty.
        """
        texts = [question + self._after, *answer]
        ids = [self._plain("".join(texts[: n + 1])) for n in range(len(texts))]
        borders = [0, *(_common(ids[n], ids[-1]) for n in range(len(texts) - 1)), len(ids[-1])]
        pieces = [ids[-1][a:b] for a, b in pairwise(borders)]
        if any(not piece for piece in (pieces[0], *pieces[1::2])):
            raise HostError(f"the tokenizer leaves a part of the question empty: {texts}")
        return [torch.tensor(piece, dtype=torch.int64) for piece in pieces]

    def closing(self) -> torch.Tensor:
        """Ids of what the chat template puts after the prompt."""
        return torch.tensor(self._plain(self._after), dtype=torch.int64)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _template(self) -> tuple[str, str]:
        """What the chat template puts before the context and after the question."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise RecipeError("this tokenizer has no chat template; leave --chat out")
        message = [{"role": "user", "content": _SLOT + _QUESTION}]
        text = self.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, tokenize=False
        )
        before, found, after = text.partition(_SLOT + _QUESTION)
        if not found:
            raise HostError("the chat template rewrites its content; leave --chat out")
        return before, after


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Some tokenizers close every text; a context goes on."""
    end = getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids
