"""Prompts as rows of tokens and embeddings of unequal lengths. Knows tokenizers and padding; knows no family."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Rows of embeddings that differ in length: (rows, L, D), padded at the end, and how many tokens of each row are words.
# The counts stay on the CPU, where reading them never makes the device wait.
RAGGED = "prompt_embeds"
COUNTS = "num_tokens"


def tokenize(tokenizer: Any, prompt: str, max_length: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Turn a prompt into token ids and their mask, each (1, max_length): cut off or padded, without a word about it."""
    tokens = tokenizer([prompt], padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    return tokens.input_ids.to(device), tokens.attention_mask.to(device)


def ragged(prompt_embeds: Tensor) -> Mapping[str, Tensor]:
    """One row (1, L, D) of as many tokens as it is long."""
    return {RAGGED: prompt_embeds, COUNTS: torch.tensor([prompt_embeds.shape[1]])}


def stack_ragged(conditionings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put rows of unequal lengths below each other, padded to the longest; all else must be of equal shape."""
    longest = max(conditioning[RAGGED].shape[1] for conditioning in conditionings)
    rows = {key: [conditioning[key] for conditioning in conditionings] for key in conditionings[0]}
    rows[RAGGED] = [torch.nn.functional.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows[RAGGED]]
    return {key: torch.cat(tensors) for key, tensors in rows.items()}


def mask_of(conditioning: Mapping[str, Tensor]) -> Tensor | None:
    """Say which tokens of ragged rows are words (rows, L); None where all of them are."""
    counts, embeds = conditioning[COUNTS], conditioning[RAGGED]
    if bool((counts == embeds.shape[1]).all()):
        return None
    mask = torch.arange(embeds.shape[1])[None] < counts[:, None]
    return mask.to(embeds.device, non_blocking=True)
