"""VAEs and large pictures: memory that does not grow with the picture. Knows no request."""

from typing import Any

# Up to this side a picture is decoded whole, as diffusers' pipelines do it. Of larger ones, tiles of this side are, and
# blended where they overlap (a quarter). The rule is one of size alone, so that exact pictures stay exact.
WHOLE_PIXELS = 1536


def tile_large_pictures(vae: Any) -> None:
    """Have a VAE encode and decode pictures larger than WHOLE_PIXELS in tiles. One that knows only tiles is let be."""
    if hasattr(vae, "tile_sample_min_height"):
        overlap = WHOLE_PIXELS // 4
        vae.enable_tiling(WHOLE_PIXELS, WHOLE_PIXELS, WHOLE_PIXELS - overlap, WHOLE_PIXELS - overlap)
    elif hasattr(vae, "tile_overlap_factor") and hasattr(vae, "tiled_decode"):
        multiple = vae.tile_sample_min_size // vae.tile_latent_min_size
        vae.tile_sample_min_size, vae.tile_latent_min_size = WHOLE_PIXELS, WHOLE_PIXELS // multiple
        vae.enable_tiling()
