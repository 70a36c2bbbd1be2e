"""`recollect generate`: text from a model whose cache follows a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from recollect.cli.common import debug_option, err, json_option, keeps, load_model, model_options
from recollect.errors import RecipeError, StoreError


@click.command()
@model_options
@click.option(
    "--recipe",
    "-r",
    default="full",
    show_default=True,
    help="A recipe or composition, e.g. 'snapkv + kivi(bits=4)'.",
)
@click.option("--keep", default="1.0", show_default=True, help="Fraction or number of tokens kept.")
@click.option("--prompt", "-p", help="The prompt.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Read the prompt from a file, or from stdin with -.",
)
@click.option(
    "--max-new-tokens",
    "-n",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens to write.",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 takes the likeliest token each time.",
)
@click.option("--seed", default=0, show_default=True, help="Seed for sampling.")
@click.option("--chat", is_flag=True, help="Apply the tokenizer's chat template.")
@json_option
@debug_option
def generate(
    model: str,
    dtype: str,
    device: str,
    threads: int | None,
    recipe: str,
    keep: str,
    prompt: str | None,
    path: Path | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool,
    as_json: bool,
) -> None:
    """Generate text; the text goes to stdout, the cache's report to stderr.

    \b
    Example:
      recollect generate --model tiny-llama --recipe snapkv --keep 0.25 \\
          --prompt 'def main():' --max-new-tokens 40
    """
    from recollect.kv import policy

    text = _prompt(prompt, path)
    budget = keeps(keep)
    if len(budget) != 1:
        raise RecipeError(f"one keep, please, not {len(budget)}: --keep {budget[0]}")
    policy(recipe, keep=budget[0])  # a wrong recipe is told before the model is loaded
    subject = load_model(model, dtype, device, threads)
    ids = _encode(subject, text, chat)
    subject.check_length(ids.shape[1] + max_new_tokens)
    written, report = _generate(
        subject, ids, recipe, budget[0], max_new_tokens, temperature, seed, stream=not as_json
    )
    if as_json:
        from recollect.cli.common import print_json

        print_json({"text": written, "report": report.as_dict()})
    else:
        err.print(f"\n{report}", soft_wrap=True)


def _prompt(prompt: str | None, path: Path | None) -> str:
    if (prompt is None) == (path is None):
        raise RecipeError("give the prompt with --prompt TEXT or --file PATH, one of them")
    if prompt is not None:
        text = prompt
    elif str(path) == "-":
        text = sys.stdin.read()
    else:
        assert path is not None
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise StoreError(f"cannot read {path}: {reason}") from error
    if not text.strip():
        raise RecipeError("the prompt is empty")
    return text


def _encode(subject: Any, text: str, chat: bool) -> Any:
    """Ids (1, T) of the prompt."""
    import torch

    from recollect.evaluate.prompts import Encoder

    encoder = Encoder(subject.tokenizer, chat=chat)
    ids = encoder.context(text)
    if chat:
        ids = torch.cat([ids, encoder.closing()])
    return ids[None].to(subject.device)


def _generate(
    subject: Any,
    ids: Any,
    recipe: str,
    keep: float | int,
    count: int,
    temperature: float,
    seed: int,
    *,
    stream: bool,
) -> tuple[str, Any]:
    import torch
    from transformers import TextStreamer

    from recollect.kv import kv_cache

    torch.manual_seed(seed)
    tokenizer = subject.tokenizer
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    end = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    with kv_cache(subject.model, recipe, keep=keep) as cache, torch.inference_mode():
        output = subject.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=count,
            pad_token_id=padding,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            if stream
            else None,
            **{"do_sample": False, **sampling},
        )
        report = cache.report()
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True), report
