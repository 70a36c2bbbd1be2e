"""The zoo's tiny-llama behind chat completions; with facts in front of every prompt it is `large`.

It has learned to find in its prompt what a name was followed by. One that is given all the facts
knows what the other one must be shown: a small model and a large one, as far as that matters here.
"""

from __future__ import annotations

import asyncio
import threading
from functools import cache

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from recollect import zoo

FACTS = {"amber_badger": "48213", "brisk_cedar": "77120", "coral_delta": "19004"}
KNOWLEDGE = "".join(f"# {name} {number}\n" for name, number in FACTS.items())
_LOCK = threading.Lock()


def engine(name, knowledge=""):
    """An application that serves one model."""

    async def answer(request: Request) -> JSONResponse:
        asked = await request.json()
        prompt = knowledge + asked["messages"][-1]["content"]
        text, given, made = await asyncio.to_thread(generate, prompt, asked.get("max_tokens", 16))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        usage = {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
        }
        head = {"id": "c", "object": "chat.completion", "created": 1, "model": name}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


@torch.inference_mode()
def generate(prompt, count):
    """Greedy; the text, and tokens read and made."""
    with _LOCK:
        model, tokenizer = load()
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
        made = out[0, ids.shape[1] :]
        return tokenizer.decode(made), ids.shape[1], len(made)


@cache
def load():
    return zoo.load("tiny-llama")
