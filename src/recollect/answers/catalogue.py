"""The recipes of this room, side by side: which stored answer may stand in for a new one.

A threshold in a recipe is meant for all-MiniLM-L6-v2; another encoder needs its own. Recipes that
decide differently do not compose; `category-cache + vcache` takes lifetimes and the never-cached
categories of the first and the bound of the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from recollect.answers.admission import Quarantine
from recollect.answers.decisions.category import Categories, PerCategory
from recollect.answers.decisions.chain import Chain
from recollect.answers.decisions.pooled import Pooled
from recollect.answers.decisions.static import Static
from recollect.answers.decisions.verified import Verified
from recollect.answers.encoders.base import Encoder, make_encoder
from recollect.answers.examples.manager import ManagerPolicy
from recollect.answers.examples.router import RouterPolicy
from recollect.answers.examples.selector import SelectorPolicy
from recollect.answers.identity import SemanticRules
from recollect.answers.verifiers import Guards
from recollect.recipe import Recipe, register


@dataclass(frozen=True)
class TextEncoder:
    """Stage ``encoder``: an encoder by name, loaded when a cache is made.

    Attributes:
        text_encoder: ``minilm`` (meaning; extra ``answers``) or ``ngram`` (spelling; numpy only).
    """

    text_encoder: str = "minilm"

    def build(self) -> Encoder:
        """Raises RecipeError for another name, HostError where its weights are missing."""
        return make_encoder(self.text_encoder)


register(
    Recipe(
        name="exact",
        title="The same request, field by field",
        authors="baseline 2024",
        arxiv="",
        area="answers",
        summary="Serves an answer to an identical request of the same scope; the first tier of "
        "every recipe.",
    ),
    Recipe(
        name="gptcache",
        title="GPTCache: An Open-Source Semantic Cache for LLM Applications Enabling Faster "
        "Answers and Cost Savings",
        authors="Bang 2023",
        arxiv="",
        area="answers",
        summary="One threshold: the nearest stored query at cosine 0.6, which is what its 0.8 "
        "means.",
        stages={"decision": Static(min_similarity=0.6)},
        fallback={"encoder": TextEncoder()},
        reported="2-10x faster than calling the model when the cache is hit",
    ),
    Recipe(
        name="semantic-router",
        title="When to Reason: Semantic Router for vLLM",
        authors="Wang et al. 2025",
        arxiv="2510.08731",
        area="answers",
        summary="Exact tier, then one threshold among requests that differ in nothing but the "
        "last user text.",
        stages={"decision": Static(min_similarity=0.8), "rules": SemanticRules()},
        fallback={"encoder": TextEncoder()},
        reported="of its router: +10.2 points on MMLU-Pro, -47.1% latency, -48.5% tokens",
    ),
    Recipe(
        name="category-cache",
        title="Category-Aware Semantic Caching for Heterogeneous LLM Workloads",
        authors="Wang et al. 2025",
        arxiv="2510.26835",
        area="answers",
        summary="Threshold, time to live, quota and permission by category of the query; relaxed "
        "when the model is overloaded; the unknown is treated by the strictest rule.",
        stages={"lifetimes": Categories()},
        fallback={"decision": PerCategory(), "encoder": TextEncoder()},
        reported="head categories hit 40-60%; remote search 30 ms against 2 ms in process; "
        "9-17% less traffic to an overloaded model (projected)",
    ),
    Recipe(
        name="meancache",
        title="MeanCache: User-Centric Semantic Caching for LLM Web Services",
        authors="Gill et al. 2024",
        arxiv="2403.02694",
        area="answers",
        summary="A follow-up hits only under the same previous turn; every user has a threshold "
        "that follows their observations.",
        stages={"decision": Chain(), "rules": SemanticRules(chained=True)},
        fallback={"encoder": TextEncoder()},
        reported="+17% F-score, +20% precision, -83% storage, -11% decision time against GPTCache",
    ),
    Recipe(
        name="vcache",
        title="vCache: Verified Semantic Prompt Caching",
        authors="Schroeder et al. 2025",
        arxiv="2502.03771",
        area="answers",
        summary="Every entry learns from comparisons with the model how similar a query must be, "
        "so that at most delta of the requests get a wrong answer.",
        stages={"decision": Verified()},
        fallback={"encoder": TextEncoder()},
        reported="up to 12.5x more hits and 26x lower error than static thresholds at its bound",
        status="experimental",  # it keeps its bound, but hits less than a threshold on our streams
    ),
    Recipe(
        name="pooled",
        title="One error bound for all entries, from neighbours that agree",
        authors="recollect 2026",
        arxiv="",
        area="answers",
        summary="All entries share one calibrated risk over similarity, lead and agreement of the "
        "neighbours; a budget of delta wrong answers is spent where it buys most hits.",
        stages={"decision": Pooled()},
        fallback={"encoder": TextEncoder()},
        reported="no paper; measured in docs/answers.md",
    ),
    Recipe(
        name="guarded",
        title="Second opinions before a similar question's answer is served",
        authors="recollect 2026",
        arxiv="",
        area="answers",
        summary="A trained pair verifier with MiniLM, rules of wording without it, for any recipe "
        "that decides, e.g. 'semantic-router + guarded'.",
        stages={"verifier": Guards()},
        reported="no paper; measured in docs/answers.md",
    ),
    Recipe(
        name="quarantine",
        title="What untrusted users write serves only them until others got the same",
        authors="recollect 2026",
        arxiv="",
        area="answers",
        summary="Admission for shared scopes, e.g. 'semantic-router + guarded + quarantine'.",
        stages={"admission": Quarantine()},
        reported="no paper; measured in docs/answers.md",
    ),
    Recipe(
        name="functional-hash",
        title="Unified Functional Hashing in Automatic Machine Learning",
        authors="Gillard et al. 2023",
        arxiv="2302.05433",
        area="answers",
        summary="Functions that behave alike on probe inputs share results; a decorator, see "
        "recollect.answers.functional.",
        reported="large gains in neural architecture search and algorithm discovery",
        status="experimental",
    ),
    Recipe(
        name="ic-cache",
        title="IC-Cache: Efficient Large Language Model Serving via In-context Caching",
        authors="Yu et al. 2025",
        arxiv="2501.12689",
        area="answers",
        summary="Past answers of a large model become examples in the prompt of a small one; "
        "never served themselves, see recollect.answers.examples.",
        stages={
            "selector": SelectorPolicy(),
            "router": RouterPolicy(),
            "manager": ManagerPolicy(),
        },
        reported="1.4-5.9x throughput, latency -28 to -71%, quality kept",
        status="experimental",
    ),
    Recipe(
        name="cacheattack",
        title="From Similarity to Vulnerability: Key Collision Attack on LLM Semantic Caching",
        authors="Zhang et al. 2026",
        arxiv="2601.23088",
        area="answers",
        summary="The threat, not a cache: a red-team kit that plants colliding keys, see "
        "recollect.answers.redteam.",
        reported="86% of victims' queries answered with the planted entry, undefended",
        status="experimental",
    ),
)
