"""Small SAEs in sae_lens' format, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH = 32
HOOK = "blocks.1.hook_resid_post"


def make(architecture: str, *, width: int = WIDTH, latents: int = 64, seed: int = 0, **settings: Any) -> Any:
    """An SAE of random weights, none of them 0, so that leaving one out shows."""
    import torch
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_class(architecture)
    metadata = SAEMetadata(**{"hook_name": HOOK} | settings.pop("metadata", {}))
    sae = kind(config(d_in=width, d_sae=latents, metadata=metadata, **settings))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in sae.named_parameters():
            weights.normal_(std=0.5, generator=random)
            if name == "threshold":
                weights.abs_()
    return sae


def mirror(*, width: int = WIDTH, **settings: Any) -> Any:
    """An SAE that reconstructs everything: of each dimension one latent is the positive part and one the negative."""
    import torch

    sae = make("standard", width=width, latents=2 * width, **settings)
    unit = torch.eye(width)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([unit, -unit]))
        sae.W_enc.copy_(sae.W_dec.T)
        for bias in (sae.b_enc, sae.b_dec):
            bias.zero_()
    return sae


def write(sae: Any, folder: Path) -> Path:
    """Saves it; returns `folder`."""
    sae.save_model(folder)
    return folder
