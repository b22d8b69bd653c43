"""Latents and token ids of a whole store, in memory on the device: what the denoiser and the text encoder train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from darkroom_train.autoencoder import encode
from darkroom_train.errors import StageMissing
from darkroom_train.files import write_safely
from darkroom_train.store import PictureStore
from darkroom_train.tokenizer import token_ids

BATCH_SIZE = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class LatentStore:
    """Latents (N, 4, h, w) in half precision and the ids of each one's captions (N, captions, length)."""

    latents: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents (B, 4, h, w) and for each the ids of one of its captions (B, length)."""
        device = self.latents.device
        indices = torch.randint(len(self), (batch_size,), generator=generator, device=device)
        captions = torch.randint(self.tokens.shape[1], (batch_size,), generator=generator, device=device)
        return self.latents[indices].float(), self.tokens[indices, captions].long()

    def save(self, path: Path) -> None:
        """Write both, safely."""
        tensors = {"latents": self.latents.cpu().contiguous(), "tokens": self.tokens.cpu().contiguous()}
        write_safely(path, lambda beside: save_file(tensors, beside))


def load_latents(path: Path, device: torch.device) -> LatentStore:
    """Read a store onto the device. Raises StageMissing."""
    if not path.exists():
        raise StageMissing(path, "autoencoder")
    return LatentStore(**load_file(path, device=str(device)))


def count_latents(path: Path) -> int:
    """Count the latents of a store without reading them; none where there is none."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as store:
        return int(store.get_slice("latents").get_shape()[0])


@torch.no_grad()
def encode_store(
    store: PictureStore, autoencoder: AutoencoderTiny, tokenizer: CLIPTokenizer, *, device: torch.device, threads: int
) -> LatentStore:
    """Encode every picture and every caption. Pictures with fewer captions than others repeat theirs."""
    encoded = [
        encode(autoencoder, torch.from_numpy(pictures).to(device)).to(torch.float16)
        for pictures in store.batches(len(store), BATCH_SIZE.get(device.type, 64), threads=threads)
    ]
    return LatentStore(torch.cat(encoded), caption_tokens(tokenizer, store.captions).to(device))


def caption_tokens(tokenizer: CLIPTokenizer, captions: Sequence[Sequence[str]]) -> Tensor:
    """Give the ids of captions as int32 (N, captions, length)."""
    most = max(len(several) for several in captions)
    flat = [several[number % len(several)] for several in captions for number in range(most)]
    ids = np.array(token_ids(tokenizer, flat), dtype=np.int32)
    return torch.from_numpy(ids.reshape(len(captions), most, -1))
