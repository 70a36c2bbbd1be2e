"""A tiny random model with a tokenizer of Python source: enough for everything but quality."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recollect.evaluate.prompts import Encoder
from recollect.evaluate.subject import Subject
from recollect.evaluate.tasks import sources


@pytest.fixture(scope="session")
def tokenizer():
    inner = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(sources.files()[:4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@pytest.fixture(scope="session")
def encoder(tokenizer):
    return Encoder(tokenizer)


@pytest.fixture(scope="session")
def subject(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=None,
    )
    return Subject("tiny", LlamaForCausalLM(config).eval(), tokenizer)


@pytest.fixture(scope="session")
def checkpoint(subject, tmp_path_factory):
    """The same model as a folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder
