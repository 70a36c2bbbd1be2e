"""Answers as a LiteLLM cache: `install(answers)`, or `litellm.cache.cache = LiteLLMCache(answers)`.

LiteLLM's own key says which calls are the same, so only the exact tier applies; who may share an
answer is read from the metadata its proxy adds (key, team, organisation, end user).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from recollect.answers.answers import Answers
from recollect.errors import HostError

try:
    import litellm
    from litellm.caching.base_cache import BaseCache
    from litellm.caching.caching import Cache
except ImportError as error:
    raise HostError("the LiteLLM cache needs litellm: pip install recollect[litellm]") from error

_OWNERS = (
    "user_api_key",
    "user_api_key_team_id",
    "user_api_key_org_id",
    "user_api_key_end_user_id",
)


def install(answers: Answers, scope_id: str = "", **arguments: Any) -> LiteLLMCache:
    """Make `answers` LiteLLM's cache.

    Provider-specific parameters (such as guided decoding) become part of LiteLLM's keys: it leaves
    them out by default, and would then serve one request another's answer.

    Args:
        scope_id: whose calls they are where no proxy says so.
        arguments: of `litellm.Cache`, e.g. ``supported_call_types``.
    """
    litellm.enable_caching_on_provider_specific_optional_params = True
    litellm.cache = Cache(**arguments)
    litellm.cache.cache = ours = LiteLLMCache(answers, scope_id)
    return ours


class LiteLLMCache(BaseCache):
    """LiteLLM's calls, one partition per owner.

    Args:
        answers: where they are kept.
        scope_id: whose calls they are where the metadata names nobody.
        default_ttl: seconds, where a call does not say.
    """

    def __init__(self, answers: Answers, scope_id: str = "", default_ttl: int = 86_400) -> None:
        super().__init__(default_ttl=default_ttl)
        self._answers, self._scope_id = answers, scope_id

    def get_cache(self, key: str, **kwargs: Any) -> Any:
        """The stored value of a key, or None."""
        lookup = self._answers.lookup(
            _request(key, kwargs),
            protocol="completions",
            scope_id=self._scope(kwargs),
            headers={"x-recollect-cache": "exact"},
        )
        return lookup.document.get("litellm")

    def set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """Store a value for as long as the call, or `default_ttl`, says."""
        self._answers.store(
            _request(key, kwargs),
            {**_answer(value), "litellm": value},
            protocol="completions",
            scope_id=self._scope(kwargs),
            ttl=self.get_ttl(**kwargs) or self.default_ttl,
        )

    async def async_get_cache(self, key: str, **kwargs: Any) -> Any:
        """`get_cache` in a thread."""
        return await asyncio.to_thread(self.get_cache, key, **kwargs)

    async def async_set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """`set_cache` in a thread."""
        await asyncio.to_thread(self.set_cache, key, value, **kwargs)

    async def async_set_cache_pipeline(
        self, cache_list: Sequence[tuple[str, Any]], **kwargs: Any
    ) -> None:
        """Store many values, each under its key: the items of an embeddings call."""
        for key, value in cache_list:
            await self.async_set_cache(key, value, **kwargs)

    async def ping(self) -> bool:
        """Whether the store answers."""
        return self._answers.stats()["entries"] is not None

    async def disconnect(self) -> None:
        """Let go of the store's files and connections."""
        self._answers.close()

    def _scope(self, kwargs: Mapping[str, Any]) -> str:
        metadata = kwargs.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        owners = [metadata.get(name) for name in _OWNERS]
        return json.dumps(owners, default=str) if any(owners) else self._scope_id


def _request(key: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's key stands for the call; the messages too, as its key runs fields together."""
    return {"prompt": key, "messages": json.dumps(kwargs.get("messages"), default=str)}


def _answer(value: Any) -> Mapping[str, Any]:
    """The answer inside a value, for the stages that judge answers; nothing where there is none."""
    response = value.get("response") if isinstance(value, Mapping) else None
    if isinstance(response, str):
        try:
            response = json.loads(response)
        except ValueError:
            return {}
    return response if isinstance(response, Mapping) else {}
