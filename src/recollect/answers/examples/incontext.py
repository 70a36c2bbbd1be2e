"""The in-context cache: past answers of a strong model make a cheap one good enough.

cache = InContextCache([Model("small", cost=1), Model("large", cost=8, strong=True)])
model, request, used = cache.prepare(request, scope_id="alice")
answer = call(model, request)
cache.observe(used, quality=judge(answer), response=answer)

A cached answer is never returned; it is only ever shown to a model (IC-Cache, arXiv 2501.12689).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recollect.answers.clock import Clock, SystemClock
from recollect.answers.encoders.base import Encoder, make_encoder
from recollect.answers.examples import saved
from recollect.answers.examples.example import Example
from recollect.answers.examples.manager import ExampleManager
from recollect.answers.examples.prompt import has_control_tokens, takes_examples, with_examples
from recollect.answers.examples.router import Model, Router, context_features
from recollect.answers.examples.selector import Choice, Selector
from recollect.answers.identity import Partition, RequestIdentity, identify
from recollect.answers.index.growing import GrowingIndex
from recollect.errors import RecipeError


@dataclass(frozen=True)
class Used:
    """What one request was prepared with; hand it back to `observe`.

    Attributes:
        model: the request goes to.
        examples: shown to it, in the order of the prompt.
        tokens: estimate of what they add to the prompt.
        wants_feedback: what is unknown about this request is worth asking the user.
    """

    model: Model
    examples: tuple[Example, ...]
    tokens: int
    wants_feedback: bool
    choice: Choice = field(repr=False)
    context: np.ndarray = field(repr=False)
    query: str = field(repr=False)
    partition: tuple[str, ...] = field(repr=False)
    refusal: str = field(repr=False)


class Prepared(NamedTuple):
    """Where a request goes, as what, and with what."""

    model: str
    request: Mapping[str, Any]
    used: Used


class Observed(NamedTuple):
    """The id under which an answer became an example, or why it did not."""

    example_id: int | None
    reason: str


class Maintained(NamedTuple):
    """Answers made again, those that were better, examples evicted."""

    replayed: int
    improved: int
    evicted: int


class InContextCache:
    """Selector, router and manager of examples around one set of models. Safe to share by threads.

    Arguments:
        models: that requests may go to. With one, nothing is routed.
        recipe: of area ``answers`` with the stages selector, router and manager.
        encoder: an Encoder or the name of one.
        clock: of decay.
        scope, secret: who shares examples, as in `identify`.
        seed: of what the bandits draw.
        **arguments: parameters of the recipe's stages, e.g. ``token_budget=512``.

    Raises RecipeError on wrong arguments.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        recipe: str = "ic-cache",
        encoder: Encoder | str = "minilm",
        clock: Clock | None = None,
        scope: str = "user",
        secret: bytes = b"",
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        stages = _stages(recipe, arguments)
        self._encoder = make_encoder(encoder) if isinstance(encoder, str) else encoder
        self._clock = clock or SystemClock()
        self._scope, self._secret = scope, secret
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self.selector = Selector(stages["selector"])
        self.router = Router(models, stages["router"])
        self.manager = ExampleManager(
            stages["manager"],
            self._clock,
            lambda: GrowingIndex(self._encoder.dim, self._encoder.encoder_id),
        )

    def prepare(
        self,
        request: Mapping[str, Any],
        *,
        protocol: str = "chat",
        scope_id: str = "",
        load: float | None = None,
    ) -> Prepared:
        """Choose a model and examples for a request.

        Args:
            request: parsed; not changed. Without examples and with one model it comes back as
                the very same object.
            protocol: of the request. Only chat, responses and messages take examples.
            scope_id: who asks, as authenticated. Empty: no examples, except in scope ``global``.
            load: of the expensive machines, 1 is all they can take; None: as before.

        Raises RecipeError on an unknown protocol or scope.
        """
        identity = self._identify(request, protocol, scope_id)
        partition = _partition(identity)
        open_to_examples = identity.cacheable and takes_examples(request, protocol)
        vector = np.zeros(self._encoder.dim, np.float32)
        if open_to_examples:
            vector = self._encoder.encode([identity.query])[0]
        with self._lock:
            if load is not None:
                self.router.observe_load(load)
            count = self.selector.policy.candidates if open_to_examples else 0
            found = self.manager.find(partition, vector, count)
            similarity = float(found[0].query_vector @ vector) if found else 0.0
            models = self.router.models
            choices = [
                self.selector.choose(
                    identity.query, vector, () if model.strong else found, model.name, self._rng
                )
                for model in models
            ]
            contexts = [
                context_features(identity.query, similarity, one.utility, len(one.examples))
                for one in choices
            ]
            at = self.router.choose(contexts, self._rng) if len(models) > 1 else 0
            model, choice = models[at], choices[at]
            wants_feedback = self.router.is_uncertain(contexts) or (
                bool(choice.examples)
                and self.selector.is_uncertain(choice, model.name, self.router.policy.ask_above)
            )
        examples = tuple(one.example for one in choice.examples)
        asked = with_examples(request, examples, protocol)
        if len(models) > 1 and request.get("model") != model.name:
            asked = {**asked, "model": model.name}
        refusal = _refusal(identity, open_to_examples)
        used = Used(
            model=model,
            examples=examples,
            tokens=choice.tokens,
            wants_feedback=wants_feedback,
            choice=choice,
            context=contexts[at],
            query=identity.query,
            partition=partition,
            refusal=refusal,
        )
        return Prepared(model.name, asked, used)

    def observe(
        self,
        used: Used,
        quality: float | None = None,
        *,
        response: str | None = None,
        verified: bool = False,
    ) -> Observed:
        """Learn how it went; keep the answer as an example where that is safe.

        Args:
            used: from `prepare`.
            quality: of the answer in [0, 1], from whoever judges; None when nobody did.
            response: the text of the answer. It becomes an example if the model is strong or the
                answer `verified`: a weak model never learns from itself.
            verified: somebody checked the answer.

        Raises RecipeError on a quality out of range.
        """
        if quality is not None and not 0 <= quality <= 1:
            raise RecipeError(f"quality is a number from 0 to 1, got {quality}")
        if quality is not None:
            ids = [example.id for example in used.examples]
            with self._lock:
                self.router.observe(used.model.name, used.context, quality)
                self.manager.used(ids, quality, used.model.cost)
                if not used.model.strong:
                    self.selector.observe(used.choice, used.model.name, quality)
        refusal = self._why_not(used, quality, response, verified)
        if refusal or response is None:
            return Observed(None, refusal)
        now = self._clock.now()
        example = Example(0, used.partition, used.query, response, used.model.name, now)
        vectors = self._encoder.encode([example.query, example.response])
        with self._lock:
            example_id, gone = self.manager.add(example, vectors[0], vectors[1])
            self.selector.forget(gone)
        return Observed(example_id, "" if example_id else "the query has an example")

    def maintain(
        self,
        generate: Callable[[str], str],
        score: Callable[[str, str], float],
        *,
        limit: int = 10,
    ) -> Maintained:
        """In idle time: make answers again where that promises most, keep the better; evict.

        Does not replay while the load is above the router's threshold.

        Args:
            generate: the strong model's answer to a query.
            score: quality of an answer to a query; the new answer must have a higher one.
            limit: answers to make, at most.
        """
        with self._lock:
            idle = self.router.load <= self.router.policy.load_threshold
            due = self.manager.due()[:limit] if idle else []
        replayed = improved = 0
        for example in due:
            answer = generate(example.query)
            better = None
            if self._is_fit(example.query, answer) and (
                score(example.query, answer) > score(example.query, example.response)
            ):
                better = replace(example, response=answer, created_at=self._clock.now())
            vector = self._encoder.encode([answer])[0] if better else None
            with self._lock:
                if self.manager.replayed(example.id, better, vector):
                    replayed += 1
                    improved += better is not None
                    if better is not None:
                        self.selector.forget([example.id])
        with self._lock:
            gone = self.manager.evict()
            self.selector.forget(gone)
        return Maintained(replayed, improved, len(gone))

    def forget(self, request: Mapping[str, Any], *, protocol: str = "chat", scope_id: str) -> int:
        """Delete every example that could be shown for this request; returns how many."""
        partition = _partition(self._identify(request, protocol, scope_id))
        with self._lock:
            ids = self.manager.ids(partition)
            self.manager.remove(ids)
            self.selector.forget(ids)
        return len(ids)

    def save(self, path: str | Path) -> None:
        """Write examples, in plain text, and all that was learned. Raises StoreError."""
        with self._lock:
            state = {
                "encoder_id": self._encoder.encoder_id,
                "selector": self.selector.state(),
                "router": self.router.state(),
                "manager": self.manager.state(),
                "rng": self._rng.bit_generator.state,
            }
            saved.write(path, state, self.manager.vectors(self._encoder.dim))

    def load(self, path: str | Path) -> None:
        """Go on from a file, in a cache that has no examples yet.

        Raises StoreError when it is missing, damaged, or of another encoder; the cache is then
        as it was. Raises RecipeError when there are examples already.
        """
        with self._lock:
            if len(self.manager):
                raise RecipeError("load examples into a new InContextCache")
            state, vectors = saved.read(path, self._encoder.encoder_id, self._encoder.dim)
            self.selector.restore(state["selector"])
            self.router.restore(state["router"])
            self.manager.restore(state["manager"], vectors)
            self._rng.bit_generator.state = state["rng"]

    def _identify(
        self, request: Mapping[str, Any], protocol: str, scope_id: str
    ) -> RequestIdentity:
        return identify(
            request, protocol=protocol, scope=self._scope, scope_id=scope_id, secret=self._secret
        )

    def _why_not(
        self, used: Used, quality: float | None, response: str | None, verified: bool
    ) -> str:
        if response is None:
            return "no response"
        if not (used.model.strong or verified):
            return "neither of a strong model nor verified"
        if used.refusal:
            return used.refusal
        if quality is not None and quality < self.manager.policy.success:
            return f"quality below {self.manager.policy.success}"
        if not self._is_fit(used.query, response):
            return "too long, empty, or with control tokens of a chat template"
        return ""

    def _is_fit(self, query: str, response: str) -> bool:
        example = Example(0, (), query, response, "", 0.0)
        return (
            bool(query.strip() and response.strip())
            and example.tokens <= self.selector.policy.token_budget
            and not has_control_tokens(query + "\n" + response)
        )


def _stages(recipe: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    from recollect.answers import catalogue  # noqa: F401  (fills its part of the registry)
    from recollect.recipe import compose

    stages = compose(recipe).with_arguments(arguments).stages
    missing = {"selector", "router", "manager"} - set(stages)
    if missing:
        raise RecipeError(f"'{recipe}' has no stage '{min(missing)}'; use or add 'ic-cache'")
    return stages


def _partition(identity: RequestIdentity) -> tuple[str, ...]:
    """Whose request it is: examples are shared by models and protocols, never by scopes."""
    partition = Partition(*identity.partition)
    return tuple(partition._replace(protocol="", wire="", model="", resolved_model=""))


def _refusal(identity: RequestIdentity, open_to_examples: bool) -> str:
    if identity.follow_up:
        return "a follow-up means nothing without its conversation"
    return "" if open_to_examples else identity.reason or "the request takes no examples"
