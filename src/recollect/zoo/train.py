"""Train a zoo model from nothing but the standard library: on two busy CPU cores in an hour.

The schedule is a function of the share of the time that has passed, so a run always ends with a
decayed learning rate, however fast the machine is. A run that was interrupted continues from its
last checkpoint.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import random
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from recollect import zoo
from recollect.errors import RecipeError, StoreError
from recollect.zoo import bars, corpus
from recollect.zoo import tokenizer as tokenizers
from recollect.zoo.architectures import CONFIGS
from recollect.zoo.graft import grow
from recollect.zoo.head_start import sketch_copying
from recollect.zoo.mixture import ANSWER, Mixture, Text
from recollect.zoo.muon import Muon

LENGTHS = (256, 512, 1024, 2048, 4096)
TOKENS_PER_STEP = 4096
CHECKPOINT_EVERY = 180.0  # seconds


@dataclass(frozen=True)
class Plan:
    """Where the weights of a model start, and the peak rates at which they move.

    Attributes:
        parent: the trained model it is grown from; None to sketch the copying circuit.
        muon: rate of Muon for the matrices inside; None for AdamW there too. Where no norm bounds
            the attention logits, they grow too fast under Muon, and attention saturates.
        adamw: rate of AdamW for everything else.
    """

    parent: str | None = None
    muon: float | None = 0.02
    adamw: float = 3e-3


PLANS = {"tiny-qwen": Plan(), "tiny-llama": Plan("tiny-qwen", muon=None, adamw=1e-3)}


@dataclass
class Progress:
    """How far a run is: all that a checkpoint keeps beside weights and optimizers.

    Attributes:
        step: updates made.
        tokens: tokens trained on.
        seconds: time spent training, over all resumptions.
        recall: running mean of the share of answer tokens that are right.
        solved: whether recall was found, so that long sequences are worth their cost.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    recall: float = 0.0
    solved: bool = False


def train(
    name: str,
    out: str | Path,
    minutes: float = 60.0,
    device: str | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    config: Any = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train the model of that name and save it, its tokenizer and its card in `out`.

    Args:
        name: a model of `architectures.CONFIGS`.
        out: folder for the checkpoint of the run and, at its end, for the model.
        minutes: time to train for, without the measurements at the end.
        device: torch device; a CUDA device where there is one, else the CPU.
        seed: of weights and data.
        resume: continue from the checkpoint in `out` if there is one.
        progress: show a progress bar.
        config: another configuration of transformers to train instead of the named one's.
        steps: stop after so many updates, even if there is time left; skips the measurements.

    Returns:
        The card: how the model was trained and what it was measured to do.

    Raises:
        RecipeError: unknown name, or no time to train.
        StoreError: `out` cannot be written to, or its checkpoint is of another model.
    """
    if name not in CONFIGS:
        raise RecipeError(f"unknown zoo model '{name}' (there are: {', '.join(CONFIGS)})")
    if not minutes > 0:
        raise RecipeError(f"minutes={minutes} must be positive")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error}") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(config or CONFIGS[name](), PLANS[name], folder, device, seed)
    if resume:
        run.restore()
    run.train(minutes * 60, steps, progress)
    card = _card(name, run, seed)
    if steps is None:
        card["measured"] = bars.measure(run.model.eval(), run.tokenizer)
    save(run.model, run.tokenizer, folder, card)
    return card


def save(model: Any, tokenizer: Any, folder: Path, card: dict[str, Any]) -> None:
    """Write a model as a plain transformers folder: float16 on disk, float32 when loaded."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    _edit(folder / "config.json", dtype="float32")
    # The class that every version of transformers has; without what depends on this machine.
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        backend=None,
        is_local=None,
        local_files_only=None,
    )
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def curriculum(part: float, solved: bool) -> tuple[tuple[float, ...], tuple[float, float, float]]:
    """Shares of `LENGTHS`, and of source, repeats and puzzles, by the part of the time passed.

    Short sequences until recall is found: it comes all at once, and costs least there. From then
    on all lengths are mixed, since a model forgets the lengths it is no longer trained on.
    """
    if not solved:
        return (0.9, 0.1, 0.0, 0.0, 0.0), (0.1, 0.4, 0.5)
    if part < 0.6:
        return (0.3, 0.25, 0.25, 0.15, 0.05), (0.25, 0.15, 0.6)
    return (0.1, 0.15, 0.3, 0.25, 0.2), (0.3, 0.1, 0.6)


def learning_rate(part: float, step: int, warmup: int = 60, hold: float = 0.45) -> float:
    """Factor on the peak rates: a warm-up in steps, a plateau, a linear decay in time."""
    return min(1.0, (step + 1) / warmup) * min(1.0, max(0.0, (1 - part) / (1 - hold)))


class _Run:
    """A model in training."""

    def __init__(self, config: Any, plan: Plan, folder: Path, device: str, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        self.folder, self.seed, self.state = folder, seed, Progress()
        self.tokenizer = _tokenizer(folder, plan.parent)
        self.text = Text.of("train", self.tokenizer)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if plan.parent:
            self.state = Progress(recall=0.7, solved=True)
            mixture = Mixture(self.tokenizer, self.text, random.Random(f"{seed} grow"))
            ids = torch.from_numpy(mixture.batch(28, 1024, (0.3, 0.1, 0.6))[0])
            grow(zoo.load(plan.parent)[0], model, ids)
        else:
            sketch_copying(model, seed)
        self.model = model.to(device).train()
        self.optimizers = _optimizers(self.model, plan)

    def train(self, seconds: float, steps: int | None, progress: bool) -> None:
        """Train until the time is over or the steps are made; leaves a checkpoint."""
        state = self.state
        # Continue with fresh data, not with that of the first steps again.
        rng = random.Random(f"{self.seed} {state.step}")
        mixture = Mixture(self.tokenizer, self.text, rng)
        before = saved = time.monotonic()
        with _bar(progress) as show:
            while state.seconds < seconds and (steps is None or state.step < steps):
                loss = self.step(mixture, state.seconds / seconds)
                now = time.monotonic()
                state.seconds += now - before
                before = now
                if show:
                    show(min(1.0, state.seconds / seconds), loss, state)
                if now - saved > CHECKPOINT_EVERY:
                    self.checkpoint()
                    saved = now
        self.checkpoint()

    def step(self, mixture: Mixture, part: float) -> float:
        """One update; returns the loss."""
        state = self.state
        lengths, shares = curriculum(part, state.solved)
        length = mixture.rng.choices(LENGTHS, lengths)[0]
        # Chains and lists of values need single facts first.
        hard = 0.15 if part > 0.4 and state.recall > 0.9 else 0.0
        batch = mixture.batch(max(1, TOKENS_PER_STEP // length), length, shares, hard)
        ids, weights = (torch.from_numpy(array).to(self.model.device) for array in batch)
        entropy, weights, hits = losses(self.model, ids, weights)
        loss = (entropy * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate(part, state.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += ids.numel()
        answers = hits[weights == ANSWER]
        if len(answers):
            state.recall += 0.05 * (answers.float().mean().item() - state.recall)
        state.solved = state.solved or state.recall > 0.75 or part > 0.5
        return loss.item()

    def checkpoint(self) -> None:
        """Save the run, so that an interruption at any time leaves one whole checkpoint."""
        path, fresh = self.folder / "checkpoint.pt", self.folder / "checkpoint.new"
        held = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": asdict(self.state),
        }
        torch.save(held, fresh)
        os.replace(fresh, path)

    def restore(self) -> None:
        """Continue from the checkpoint in the folder, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            held = torch.load(path, weights_only=True, map_location=self.model.device)
            self.model.load_state_dict(held["model"])
            for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.state = Progress(**held["state"])
        except Exception as error:
            raise StoreError(
                f"{path} is damaged or of another model; delete it or train with resume=False"
            ) from error


def _optimizers(model: Any, plan: Plan) -> list[torch.optim.Optimizer]:
    """The optimizers of a plan; every group knows its peak rate."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        inside = plan.muon and weight.ndim == 2 and "embed" not in name
        (matrices if inside else others).append(weight)
    adamw = {"params": others, "peak": plan.adamw}
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([adamw], betas=(0.9, 0.95), weight_decay=0.01)
    ]
    if plan.muon:
        found.append(Muon([{"params": matrices, "peak": plan.muon}]))
    return found


def losses(
    model: Any, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy, weight and hit of each of the N tokens with a weight: three (N,) tensors.

    Args:
        model: a causal language model.
        ids: (B, T) token ids.
        weights: (B, T) loss weights.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[wanted])
    targets = ids[:, 1:][wanted]
    entropy = F.cross_entropy(logits, targets, reduction="none")
    return entropy, weights[:, 1:][wanted], logits.detach().argmax(-1) == targets


def _tokenizer(folder: Path, parent: str | None) -> Any:
    """The tokenizer of the parent or of an earlier run in this folder, else a new one."""
    from transformers import AutoTokenizer

    if parent:
        return AutoTokenizer.from_pretrained(zoo.path(parent))
    if not (folder / "tokenizer.json").exists():
        tokenizers.train(corpus.documents("train")).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _edit(path: Path, **changes: Any) -> None:
    """Set some values of a JSON file; None removes one."""
    held = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in held.items() if value is not None or name not in changes}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def _card(name: str, run: _Run, seed: int) -> dict[str, Any]:
    state, plan = run.state, PLANS[name]
    return {
        "name": name,
        "parameters": run.model.num_parameters(),
        "trained_on": f"standard library of Python {platform.python_version()}",
        "recipe": {
            "script": f"recollect zoo train {name}",
            "mixture": "source text; repeated spans; puzzles buried in source text",
            "lengths": list(LENGTHS),
            "tokens_per_step": TOKENS_PER_STEP,
            "optimizers": "Muon for matrices if it has a rate, else AdamW; linear decay to 0",
            "peak_rates": {k: v for k, v in asdict(plan).items() if k != "parent"},
            "start": f"grown from {plan.parent} (graft.py)"
            if plan.parent
            else "copying circuit sketched in the initial weights (head_start.py)",
            "seed": seed,
            "steps": state.step,
            "tokens": state.tokens,
            "minutes": round(state.seconds / 60, 1),
        },
    }


def _bar(wanted: bool) -> Any:
    """A context that gives a function to show progress with, or None."""
    if not wanted:
        return nullcontext(None)
    return _Bar()


class _Bar:
    def __enter__(self) -> Any:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, transient=True)
        self._bars.start()
        self._task = self._bars.add_task("training", total=1.0)
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _show(self, part: float, loss: float, state: Progress) -> None:
        text = f"{state.tokens / 1e6:.2f}M tokens · loss {loss:.2f} · recall {state.recall:.0%}"
        self._bars.update(self._task, completed=part, description=text)
