"""Train the head where the texts are: clients share weights and a threshold, never a query.

MeanCache (arXiv 2403.02694) by federated averaging (McMahan et al. 2017, arXiv 1602.05629) on
Flower: the same client and server apps run in its simulation engine and, with their own data
loading, in a deployment. Needs the extra ``federated``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recollect.answers.encoders.base import unit_rows
from recollect.answers.learning.calibrate import best_f_threshold
from recollect.answers.learning.contrastive import Pairs, Training, train_head
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp


class Shard(NamedTuple):
    """What one client has: pairs to train on and pairs to choose its threshold on."""

    training: Pairs
    validation: Pairs


@dataclass(frozen=True)
class Federation:
    """How clients train together.

    Attributes:
        rounds: of averaging.
        per_round: clients that train in a round; the others rest.
        training: of each client in each round.
    """

    rounds: int = 50
    per_round: int = 4
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.per_round < 1:
            raise RecipeError("a federation needs rounds >= 1 and per_round >= 1")


class Outcome(NamedTuple):
    """The averaged head (D, d) and the averaged F1-optimal cosine of the clients."""

    head: np.ndarray
    threshold: float


def average(heads: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """Mean of heads (D, d) weighted by numbers of training pairs (federated averaging)."""
    return np.average(np.stack(heads), axis=0, weights=counts)


def train_client(head: np.ndarray, shard: Shard, training: Training, turn: int) -> np.ndarray:
    """One client's part of round `turn`: train the head on its own pairs."""
    return train_head(head, shard.training, replace(training, seed=training.seed + turn))


def client_threshold(head: np.ndarray, shard: Shard) -> float:
    """The cosine with the best F1 on a client's validation pairs."""
    first, second = (unit_rows(side @ head) for side in shard.validation[:2])
    return best_f_threshold((first * second).sum(1).tolist(), shard.validation.same.tolist())


def simulate(shards: Sequence[Shard], head: np.ndarray, federation: Federation) -> Outcome:
    """Run the federation in Flower's simulation engine, every shard a client.

    Raises HostError when Flower is not installed, RecipeError when there are too few shards.
    """
    if importlib.util.find_spec("flwr") is None:
        raise HostError("federated training needs Flower: pip install recollect[federated]")
    from flwr.simulation import run_simulation

    outcomes: list[Outcome] = []
    run_simulation(
        server_app=server_app(head, len(shards), federation, outcomes),
        client_app=client_app(shards, federation.training),
        num_supernodes=len(shards),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    if not outcomes:
        raise HostError("the simulation ended without a result; Flower's log says why")
    return outcomes[0]


def client_app(shards: Sequence[Shard], training: Training) -> ClientApp:
    """Flower's client: trains and chooses a threshold on the shard of its partition."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def reply(message: Message, content: dict[str, Any]) -> Message:
        return Message(content=RecordDict(content), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        shard = shards[int(context.node_config["partition-id"])]
        [head] = message.content["arrays"].to_numpy_ndarrays()
        turn = int(message.content["config"]["server-round"])
        trained = train_client(head, shard, training, turn)
        metrics = MetricRecord({"num-examples": shard.training.size})
        return reply(message, {"arrays": ArrayRecord([trained]), "metrics": metrics})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        shard = shards[int(context.node_config["partition-id"])]
        [head] = message.content["arrays"].to_numpy_ndarrays()
        metrics = {"threshold": client_threshold(head, shard)}
        counted = MetricRecord({**metrics, "num-examples": shard.validation.size})
        return reply(message, {"metrics": counted})

    return app


def server_app(
    head: np.ndarray, clients: int, federation: Federation, outcomes: list[Outcome]
) -> ServerApp:
    """Flower's server: federated averaging of the head; puts the result into `outcomes`."""
    if federation.per_round > clients:
        raise RecipeError(f"{federation.per_round} clients a round, but there are {clients}")
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=federation.per_round / clients,
            fraction_evaluate=1.0,
            min_train_nodes=federation.per_round,
            min_evaluate_nodes=clients,
            min_available_nodes=clients,
        )
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord([head]), num_rounds=federation.rounds
        )
        [averaged] = result.arrays.to_numpy_ndarrays()
        last = max(result.evaluate_metrics_clientapp)
        threshold = float(result.evaluate_metrics_clientapp[last]["threshold"])
        outcomes.append(Outcome(averaged, threshold))

    return app
