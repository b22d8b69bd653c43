"""The tokenizer stage: a byte-level BPE in CLIP's format, learned from captions. Knows words, no network."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, trainers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], *, vocabulary: int, max_length: int) -> CLIPTokenizer:
    """Learn merges from captions until there are so many tokens, the two special ones included.

    Every byte, at a word's end or before it, is a token whether seen or not: no character is unknown.
    """
    # A tokenizer without vocabulary lends its way of normalizing and splitting, so that both agree.
    pattern = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    symbols = sorted(ByteLevel.alphabet())
    learner = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = pattern.normalizer
    learner.pre_tokenizer = pattern.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, initial_alphabet=symbols, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    words = [*symbols, *(symbol + WORD_END for symbol in symbols)]
    # The bytes that end a word and were not seen come on top of what was learned: as many merges fewer are kept.
    for merge in merges:
        if len(words) == vocabulary - 2:
            break
        if "".join(merge) not in words:
            words.append("".join(merge))
    numbered = {word: number for number, word in enumerate([*words, START, END])}
    kept = [merge for merge in merges if "".join(merge) in numbered]
    return CLIPTokenizer(vocab=numbered, merges=kept, model_max_length=max_length)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write it as from_pretrained reads it."""
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read it again."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """Turn captions into ids, padded and cut to the tokenizer's length, as the pipeline does."""
    tokens = tokenizer(captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    ids: list[list[int]] = tokens.input_ids
    return ids
