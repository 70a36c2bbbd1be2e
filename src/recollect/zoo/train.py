"""Train a zoo model from nothing but the standard library, on a CPU in about an hour.

The schedule is a function of the share of the time that has passed, so a run always ends with a
decayed learning rate, however fast the machine is. Runs are resumable.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from recollect.zoo import corpus
from recollect.zoo import tokenizer as tokenizers
from recollect.zoo.architectures import CONFIGS
from recollect.zoo.mixture import ANSWER, Mixture, Text

TOKENS_PER_STEP = 8192
LENGTHS = (256, 512, 1024, 2048, 4096)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for weight matrices (Jordan et al. 2024).

    Learns recall in about half the tokens that AdamW needs. torch's own version computes in
    bfloat16, which is slow on CPUs without it.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(p)
                buffer = state["buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrix with singular values about 1, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def curriculum(part: float, solved: bool) -> tuple[tuple[float, ...], tuple[float, float, float]]:
    """Shares of the lengths and of the kinds of text, by the part of the time that has passed.

    Short sequences until recall is found: it comes all at once, and costs least there.
    """
    if not solved:
        return (0.9, 0.1, 0.0, 0.0, 0.0), (0.1, 0.4, 0.5)
    if part < 0.6:
        return (0.3, 0.25, 0.25, 0.15, 0.05), (0.25, 0.15, 0.6)
    return (0.1, 0.15, 0.3, 0.25, 0.2), (0.3, 0.1, 0.6)


def learning_rate(part: float, step: int, warmup: int = 60, hold: float = 0.45) -> float:
    """Factor on the peak rate: a short warm-up in steps, a plateau, a linear decay in time."""
    return min(1.0, (step + 1) / warmup) * min(1.0, max(0.0, (1 - part) / (1 - hold)))


def build(name: str, seed: int) -> Any:
    """The untrained model of that name."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)


def losses(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cross-entropy, weight and hit of every token that has a weight: three (N,) tensors."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[wanted])
    target = ids[:, 1:][wanted]
    entropy = F.cross_entropy(logits, target, reduction="none")
    return entropy, weights[:, 1:][wanted], logits.detach().argmax(-1) == target


def run(name: str, out: str, minutes: float, seed: int = 0, muon_lr: float = 0.02) -> None:
    from transformers import AutoTokenizer
    import os
    folder = Path(out); folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained("/tmp/zoo-runs/tok")
    cache = Path("/tmp/zoo-runs/text.pt")
    if not cache.exists():
        t = [Text.of("train", tok), Text.of("held-out", tok)]
        torch.save([tuple(map(torch.from_numpy, x)) for x in t], str(cache) + name); os.rename(str(cache) + name, cache)
    train_text, held_text = [Text(a.numpy(), b.numpy()) for a, b in torch.load(cache)]
    model = build(name, seed)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    opts = [Muon(matrices, lr=muon_lr), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)]
    base = [o.param_groups[0]["lr"] for o in opts]
    state = dict(step=0, tokens=0, elapsed=0.0, solved=False, ema=0.0)
    ck = folder / "checkpoint.pt"
    if ck.exists():
        s = torch.load(ck, weights_only=True)
        model.load_state_dict(s["model"]); [o.load_state_dict(x) for o, x in zip(opts, s["opts"])]; state = s["state"]
    log = open(folder / "log.txt", "a")
    def say(*a):
        print(*a, file=log, flush=True)
    mix = Mixture(tok, train_text, random.Random(f"{seed} {state['step']} {name}"))
    say(name, sum(p.numel() for p in model.parameters()), "params", len(train_text.ids), "tokens")
    last = time.time(); saved = tested = last; acc = []; lmloss = []; first = None
    while True:
        now = time.time(); state["elapsed"] += now - last; last = now
        part = state["elapsed"] / (minutes * 60)
        if part >= 1: break
        lens, shares = curriculum(part, state["solved"])
        length = mix.rng.choices(LENGTHS, lens)[0]
        per = TOKENS_PER_STEP if state["solved"] else TOKENS_PER_STEP // 2
        ids, w = mix.batch(max(1, per // length), length, shares, 0.15 if part > 0.5 and state["ema"] > .9 else 0.0)
        ids, w = torch.from_numpy(ids), torch.from_numpy(w)
        f = learning_rate(part, state["step"])
        for o, b in zip(opts, base):
            for g in o.param_groups: g["lr"] = b * f
        ce, ww, hit = losses(model, ids, w)
        loss = (ce * ww).sum() / ww.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts: o.step(); o.zero_grad(set_to_none=True)
        state["step"] += 1; state["tokens"] += ids.numel()
        a = ww == ANSWER
        if a.any():
            acc.append(hit[a].float().mean().item()); state["ema"] += 0.05 * (acc[-1] - state["ema"])
        if (~a).any(): lmloss.append(ce[~a].mean().item())
        if not state["solved"] and (state["ema"] > 0.75 or part > 0.5):
            state["solved"] = True; say("solved at", state)
        if state["step"] % 20 == 0:
            say(f"step {state['step']} part {part:.3f} tok {state['tokens']/1e6:.2f}M el {state['elapsed']/60:.1f} acc {sum(acc)/max(1,len(acc)):.3f} rest {sum(lmloss)/max(1,len(lmloss)):.3f} tok/s {state['tokens']/state['elapsed']:.0f}"); acc = []; lmloss = []
        if now - saved > 180:
            torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts], state=state), str(ck) + ".tmp"); os.replace(str(ck) + ".tmp", ck); saved = now
        if now - tested > 300 and state["ema"] > 0.3:
            say("EVAL", quick(model, tok, held_text)); tested = now; 
    torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts], state=state), ck)
    say("FINAL", quick(model, tok, held_text, 24), state)


@torch.no_grad()
def quick(model, tok, text, cases=6):
    out = {}
    for length in (512, 1024, 2048, 4096):
        mix = Mixture(tok, text, random.Random(length), part="held-out")
        good = n = 0
        for _ in range(cases):
            made = needles_case(mix, length)
            ids = torch.tensor([made.ids]); w = torch.tensor([made.weights])
            ce, ww, hit = losses(model, ids, w)
            # per ask
            ends = (ww == 1.0).nonzero().flatten().tolist(); b = 0
            for e in ends:
                good += bool(hit[b:e + 1].all()); n += 1; b = e + 1
        out[length] = round(good / n, 3)
    i = torch.from_numpy(text.ids[: 16 * 1025].reshape(16, 1025).copy())
    ce, _, _ = losses(model, i, torch.ones_like(i, dtype=torch.float32))
    out["ppl"] = round(ce.mean().exp().item(), 2)
    return out


def needles_case(mix, length):
    from recollect.zoo import needles
    from recollect.zoo.mixture import Sequence_
    made = needles.single(mix.rng, 8, mix.part)
    planted = [mix._encode(x) for x in made.planted]
    tail = [mix._asked(x) for x in made.asks]
    end = [t for s in tail for t in s.ids]; ew = [t for s in tail for t in s.weights]
    hay = mix._lines(length - 1 - len(end) - sum(map(len, planted)))
    ids = [0]
    for piece, _ in mix._interleave(planted, hay): ids += piece
    return Sequence_(ids + end, [0.0] * len(ids) + ew)


if __name__ == "__main__":
    import sys
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
