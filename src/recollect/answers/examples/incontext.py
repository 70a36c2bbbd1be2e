"""The in-context cache: past answers of a strong model make a cheap one good enough.

cache = InContextCache([Model("small", cost=1), Model("large", cost=8, strong=True)])
model, request, used = cache.prepare(request, scope_id="alice")
answer = call(model, request)
cache.observe(used, quality=judge(answer), response=answer)

A cached answer is never returned; it is only ever shown to a model (IC-Cache, arXiv 2501.12689).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recollect.answers.examples.example import Example, Found
from recollect.answers.examples.prompt import takes_examples, with_examples
from recollect.answers.examples.results import Observed, Prepared, Used
from recollect.answers.examples.router import context_features
from recollect.answers.examples.selector import Choice
from recollect.answers.examples.upkeep import Upkeep, partition_of
from recollect.answers.identity import RequestIdentity, writer_digest
from recollect.errors import RecipeError


class InContextCache(Upkeep):
    """Selector, router and manager of examples around one set of models. Safe to share by threads.

    Arguments:
        models: that requests may go to. With one, nothing is routed.
        recipe: of area ``answers`` with the stages selector, router and manager.
        encoder: an Encoder or the name of one.
        clock: of decay.
        scope: who shares examples, as in `identify`.
        secret: key of the digests that stand for scopes and writers; made up and kept in the file
            of `save` when None.
        seed: of what the bandits draw.
        **arguments: parameters of the recipe's stages, e.g. ``token_budget=512``.

    Raises RecipeError on wrong arguments.
    """

    def prepare(
        self,
        request: Mapping[str, Any],
        *,
        protocol: str = "chat",
        scope_id: str = "",
        user: str = "",
        headers: Mapping[str, str] | None = None,
        load: float | None = None,
        show: bool = True,
        model: str | None = None,
    ) -> Prepared:
        """Choose a model and examples for a request.

        Args:
            request: parsed; not changed. Without examples and with one model it comes back as
                the very same object.
            protocol: of the request. Only chat, responses and messages take examples.
            scope_id: who asks, as authenticated. Empty: no examples, except in scope ``global``.
            user: who asks within the scope; `scope_id` when empty.
            headers: of the HTTP request, as `Answers.lookup` takes them.
            load: of the expensive machines, 1 is all they can take; None: as before.
            show: False shows no examples.
            model: name of the one that must answer; None leaves that to the router.

        Raises RecipeError on an unknown protocol, scope or model.
        """
        names = [one.name for one in self.router.models]
        if model is not None and model not in names:
            raise RecipeError(f"no model '{model}'; there are: {', '.join(names)}")
        identity = self._identify(request, protocol, scope_id, headers)
        partition = partition_of(identity)
        open_to_examples = identity.cacheable and takes_examples(request, protocol)
        vector = np.zeros(self._encoder.dim, np.float32)
        if open_to_examples:
            vector = self._encoder.encode([identity.query])[0]
        with self._lock:
            if load is not None:
                self.router.observe_load(load)
            count = self.selector.policy.candidates if open_to_examples and show else 0
            found = self.manager.find(partition, vector, count)
            choices = self._choices(identity.query, vector, found)
            similarity = float(found[0].query_vector @ vector) if found else 0.0
            contexts = [
                context_features(identity.query, similarity, one.utility, len(one.examples))
                for one in choices
            ]
            if model is not None:
                at = names.index(model)
            else:
                at = self.router.choose(contexts, self._rng) if len(names) > 1 else 0
            chosen, choice = self.router.models[at], choices[at]
            wants_feedback = (model is None and self.router.is_uncertain(contexts)) or (
                bool(choice.examples)
                and self.selector.is_uncertain(choice, chosen.name, self.router.policy.ask_above)
            )
        examples = tuple(one.example for one in choice.examples)
        asked = with_examples(request, examples, protocol)
        if len(names) > 1 and request.get("model") != chosen.name:
            asked = {**asked, "model": chosen.name}
        used = Used(
            model=chosen,
            examples=examples,
            tokens=choice.tokens,
            wants_feedback=wants_feedback,
            choice=choice,
            context=contexts[at],
            query=identity.query,
            partition=partition,
            key=identity.exact_fp.hex(),
            writer=writer_digest(self._secret, user or scope_id),
            refusal=_refusal(identity, open_to_examples),
        )
        return Prepared(chosen.name, asked, used)

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
        example = Example(
            id=0,
            partition=used.partition,
            query=used.query,
            response=response,
            model=used.model.name,
            created_at=self._clock.now(),
            key=used.key,
            writer=used.writer,
        )
        vectors = self._encoder.encode([example.query, example.response])
        with self._lock:
            example_id, gone = self.manager.add(example, vectors[0], vectors[1])
            self.selector.forget(gone)
        return Observed(example_id, "" if example_id else "the query has an example")

    def _choices(self, query: str, vector: np.ndarray, found: Sequence[Found]) -> list[Choice]:
        """Examples for each model; a strong one needs none."""
        return [
            self.selector.choose(
                query, vector, () if model.strong else found, model.name, self._rng
            )
            for model in self.router.models
        ]

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


def _refusal(identity: RequestIdentity, open_to_examples: bool) -> str:
    if identity.follow_up:
        return "a follow-up means nothing without its conversation"
    return "" if open_to_examples else identity.reason or "the request takes no examples"
