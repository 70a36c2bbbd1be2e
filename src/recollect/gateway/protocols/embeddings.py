"""OpenAI's embeddings: `POST /v1/embeddings`, cached by item.

Vectors are cut out of documents as text: no number is read and written again on the way, so each
vector is replayed as the upstream spelt it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway.protocols.base import Assembler, Protocol, Usage, number, openai_error


class Embeddings(Protocol):
    """Embeddings; they do not stream."""

    name = "embeddings"
    path = "/v1/embeddings"

    def assembler(self) -> Assembler:
        raise GatewayError("embeddings do not stream")

    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        raise GatewayError("embeddings do not stream")

    def endings(self, document: Mapping[str, Any]) -> set[str]:
        return {"stop" if document.get("data") else "unknown"}

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        found = document.get("usage")
        return Usage(number(found.get("prompt_tokens"))) if isinstance(found, dict) else None

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        return openai_error(status, message, code)

    def broken(self, message: str) -> bytes:
        return documents.dump(self.error(502, message, "upstream_broke"))


def split_document(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """One document for each item of one document, in the order of their `index`.

    Args:
        sizes: of the inputs, one each: tokens are shared out in proportion to them.

    Raises GatewayError when the document does not hold one vector for each.
    """
    top = documents.members(text_of(body))
    items = [documents.members(item) for item in documents.elements(top.get("data", "null"))]
    order = sorted(range(len(items)), key=lambda i: _index(items[i], i))
    indices = [_index(items[i], i) for i in order]
    if indices != list(range(len(sizes))) or any("embedding" not in item for item in items):
        raise GatewayError(f"expected {len(sizes)} vectors, got {len(items)}")
    usage = documents.load(top["usage"]) if "usage" in top else {}
    total = number(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0
    shares = share_out(total, sizes)
    return [
        join_items([items[i]], top.get("model", "null"), tokens)
        for i, tokens in zip(order, shares, strict=True)
    ]


def join_documents(parts: Sequence[bytes]) -> bytes:
    """One document of many with one item each, in that order."""
    tops = [documents.members(text_of(part)) for part in parts]
    items = [documents.members(documents.elements(top["data"])[0]) for top in tops]
    usages = [documents.load(top.get("usage", "{}")) for top in tops]
    return join_items(
        items, tops[0].get("model", "null"), sum(number(u.get("prompt_tokens")) for u in usages)
    )


def join_items(items: Sequence[Mapping[str, str]], model: str, tokens: int) -> bytes:
    """A document of items given as the texts of their members."""
    written = []
    for index, item in enumerate(items):
        members = {"object": '"embedding"', **item, "index": str(index)}
        written.append(",".join(f"{json.dumps(k)}:{v}" for k, v in members.items()))
    data = ",".join("{" + item + "}" for item in written)
    usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{{"object":"list","data":[{data}],"model":{model},"usage":{usage}}}'.encode()


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole shares of a total in proportion to sizes; they sum to it exactly."""
    whole = sum(sizes) or 1
    ends = [total * sum(sizes[: i + 1]) // whole for i in range(len(sizes))]
    if ends:
        ends[-1] = total
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _index(item: Mapping[str, str], position: int) -> int:
    return number(documents.load(item.get("index", str(position))))


def text_of(body: bytes) -> str:
    """A document as text, checked to be JSON. Raises GatewayError."""
    documents.load_object(body)
    return body.decode("utf-8")
