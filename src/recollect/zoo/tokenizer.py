"""The zoo's tokenizer: a small byte-level BPE trained on the standard library's source.

Digits and newlines are always tokens of their own. So a value is spelled digit by digit, and the
tokens of a text are the tokens of its lines, one after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 2048
END = "<|endoftext|>"


def train(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """Train the tokenizer on `texts`; returns a transformers tokenizer that adds END in front."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # A digit keeps the space before it: the first digit of a value then follows the last token of
    # its name directly, which is what a small model needs to find it (prototypes: " = " in between
    # had not been learned when the same task without it was solved).
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n| ?[0-9]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    digits = "".join(f" {digit}" for digit in range(10)) + "\n"
    tokenizer.train_from_iterator([*texts, digits * 1000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
