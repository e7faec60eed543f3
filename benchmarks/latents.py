"""Monitoring a few latents of an SAE against encoding all with `sae.encode`, in one run on the same activations.

Both must find the same. The SAEs are random: a ReLU one, and a JumpReLU one, as which BatchTopK SAEs are saved.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import harness
from harness import Bar

ARCHITECTURES = ("standard", "jumprelu")


@dataclass(frozen=True)
class Size:
    """So many latents of an SAE of a width, of which so many are monitored on so many tokens; the bar."""

    latents: int
    width: int
    monitored: int
    tokens: int
    bar: float


FULL = Size(latents=32_768, width=1024, monitored=8, tokens=1024, bar=300.0)
# Quick to run, to see that the benchmark works; its figures mean nothing.
SMOKE = Size(latents=256, width=32, monitored=8, tokens=64, bar=0.0)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--smoke", action="store_true", help="a tiny SAE, to see that the benchmark works")


def make_sae(architecture: str, size: Size, device: str) -> Any:
    """An SAE of random weights, which subtracts its decoder's bias; few values pass the threshold of a JumpReLU one."""
    import torch
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    torch.manual_seed(0)
    sae = kind(config(d_in=size.width, d_sae=size.latents, apply_b_dec_to_input=True))
    with torch.no_grad():
        for name, weights in sae.named_parameters():
            weights.normal_(std=size.width**-0.5)
            if name == "threshold":
                weights.fill_(1.5)
    return sae.to(device)


def bar_of(architecture: str, size: Size, options: argparse.Namespace) -> Bar:
    import torch

    from realign.sae import MonitoredLatents

    sae = make_sae(architecture, size, options.device)
    found = torch.randn(size.tokens, size.width, generator=torch.Generator().manual_seed(1)).to(options.device)
    step = size.latents // size.monitored
    monitor = MonitoredLatents(sae, range(0, size.latents, step))
    cuda = torch.device(options.device).type == "cuda"

    def ours() -> Any:
        values = monitor(found)
        if cuda:
            torch.cuda.synchronize()
        return values

    def theirs() -> Any:
        with torch.no_grad():
            values = sae.encode(found)
        if cuda:
            torch.cuda.synchronize()
        return values

    expected = theirs()[:, ::step]
    if not expected.any():
        raise AssertionError("no monitored latent is active")
    torch.testing.assert_close(ours(), expected, rtol=1e-4, atol=1e-5)
    value = harness.ratio(ours, theirs, options.repeats)
    what = f"{architecture}: {size.monitored} of {size.latents:,} latents, times as fast as sae.encode"
    return Bar(what, value, size.bar, value >= size.bar)


def measure(options: argparse.Namespace) -> list[Bar]:
    return [bar_of(architecture, SMOKE if options.smoke else FULL, options) for architecture in ARCHITECTURES]


if __name__ == "__main__":
    harness.main("latents", measure, arguments)
