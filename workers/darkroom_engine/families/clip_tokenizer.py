"""The tokenizer that all of the CLIP text encoders share, from the merges that OpenAI published (single_files/clip)."""

import lzma
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "single_files" / "clip" / "merges.txt.xz"
MAX_TOKENS = 77


def byte_symbols() -> list[str]:
    """The 256 printable characters that byte-level tokenizers write bytes as (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]


def clip_tokenizer(*, pad_token: str) -> Any:
    """Build it; the vocabulary follows from the merges. OpenCLIP's encoders pad with another token than OpenAI's."""
    merges = [tuple(line.split()) for line in lzma.decompress(MERGES.read_bytes()).decode().splitlines()]
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token=pad_token)
