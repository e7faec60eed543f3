"""Sparse autoencoders (SAEs), those of sae_lens: opened, held against the model that they are to read, and read."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign import capture
from realign.directions import residual_shape
from realign.errors import RealignError
from realign.weights import brief

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE
    from torch import Tensor

    from realign.checkpoint import Checkpoint
    from realign.dialogue import Prompt

# Below this share of explained variance an SAE's latents do not tell what the model computes.
FAITHFUL_FROM = 0.6
HOW_TO_TRAIN = "Train one on this model: realign sae train CKPT --layer L --texts F -o DIR."

# Architectures whose latents are read. Transcoders and the like do not give back what they read.
_ARCHITECTURES = ("standard", "jumprelu", "topk", "abstopk", "gated", "matching_pursuit")
# Those in which no latent depends on the others. BatchTopK is one of them: at inference it is a JumpReLU.
_INDEPENDENT = ("standard", "jumprelu")
# Normalisations that sae_lens leaves to whoever reads the activations, unless they are folded into the weights.
_UNFOLDED = ("expected_average_only_in", "covariance_whitening")

# Names of the residual stream after a layer and before it, of TransformerLens and of Hugging Face modules.
_AFTER = re.compile(r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)|(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.output)?")
_BEFORE = re.compile(r"blocks\.(\d+)\.(?:hook_resid_pre|hook_in)")


def open_sae(source: str | Path, device: torch.device | str = "cpu") -> SAE[Any]:
    """An SAE in float32, from a folder in sae_lens' format (cfg.json, sae_weights.safetensors) or as "release:id".

    Raises:
        RealignError: sae_lens is not installed, there is no such SAE, or it cannot be read or is not finite.
    """
    import torch

    lens = sae_lens()
    release, _, name = str(source).partition(":")
    local = Path(source).is_dir()
    if not local and not (release and name):
        fix = "Name a folder with cfg.json and sae_weights.safetensors in it, or release:id."
        raise RealignError(f"cannot open the SAE {source}", "there is no such folder", fix)
    try:
        with warnings.catch_warnings(action="ignore"):  # sae_lens' hints to programmers
            if local:
                sae = lens.SAE.load_from_disk(source, device=str(device), dtype="float32")
            else:
                sae = lens.SAE.from_pretrained(release, name, device=str(device), dtype="float32")
    except Exception as error:  # sae_lens has no error of its own for what is not an SAE
        raise RealignError(f"cannot open the SAE {source}", f"sae_lens cannot read it ({brief(error)})") from error
    if sae.cfg.architecture() not in _ARCHITECTURES:
        why = f"its architecture is {sae.cfg.architecture()}, and read are {', '.join(_ARCHITECTURES)}"
        raise RealignError(f"cannot use the SAE {source}", why)
    if not all(torch.isfinite(tensor).all() for tensor in sae.state_dict().values()):
        raise RealignError(
            f"cannot use the SAE {source}", "some of its weights are not finite", "Train or get it anew."
        )
    return sae.eval()


def sae_lens() -> Any:
    """The library, which is not a dependency: it brings many packages.

    Raises:
        RealignError: it is not installed.
    """
    try:
        import sae_lens
    except ImportError as error:
        raise RealignError(
            "cannot work with an SAE", f"sae_lens is not installed ({error})", "Run pip install 'realign[sae]'."
        ) from error
    return sae_lens


def layer_read(sae: SAE[Any], checkpoint: Checkpoint, source: str | Path) -> int:
    """The layer whose output an SAE reads, counted from 0, after a check that it can read this model's at all.

    Whether it was trained on this model its settings do not say; how well it reconstructs (`fidelity`) does.

    Raises:
        RealignError: its hook point, layer, width or normalisation does not fit; the message says which.
    """
    depth, width = residual_shape(checkpoint)
    hook, layer = sae.cfg.metadata.hook_name, _layer(sae)
    centred = (sae.cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights")
    if layer is None:
        why = f"its hook point is {hook or 'not named'}, and realign reads the residual stream after a layer"
    elif not 0 <= layer < depth:
        why = f"its hook point is {hook}, layer {layer}, and the model has the layers 0 to {depth - 1}"
    elif sae.cfg.d_in != width:
        why = f"its width is {sae.cfg.d_in}, and the model's is {width}"
    elif sae.cfg.normalize_activations in _UNFOLDED:
        why = f"its normalisation ({sae.cfg.normalize_activations}) is not folded into its weights"
    elif centred:
        why = "its normalisation does not fit: it was trained on a model with centred weights"
    else:
        return layer
    raise RealignError(f"the SAE {source} does not fit {checkpoint.source}", why, HOW_TO_TRAIN)


def _layer(sae: SAE[Any]) -> int | None:
    """The layer after which it reads the residual stream (-1: before the first); None if it reads something else."""
    hook = str(sae.cfg.metadata.hook_name or "")
    if sae.cfg.reshape_activations != "none" or sae.cfg.metadata.hook_head_index is not None:
        return None
    if found := _AFTER.fullmatch(hook):
        return int(found[1] or found[2])
    found = _BEFORE.fullmatch(hook)
    return int(found[1]) - 1 if found else None


def activations(
    checkpoint: Checkpoint, texts: Iterable[Prompt | Sequence[int]], layer: int
) -> Iterator[tuple[int, Tensor]]:
    """The activations of all tokens but the first, text by text, as `capture.all_tokens` streams them.

    On the first token models park attention: its activations are often hundreds of times as large as all others, and no
    SAE that reads them too explains anything else.

    Yields:
        The text's number and its activations, [tokens - 1, width] float32 on the CPU.
    """
    import torch

    for number, found in capture.all_tokens(checkpoint, texts, [layer]):
        yield number, torch.from_numpy(found[1:, 0])


@dataclass(frozen=True)
class Fidelity:
    """How well an SAE fits a model.

    Attributes:
        explained_variance: share of the variance of the model's activations that its reconstruction explains.
        active: latents active at a time, in the mean.
    """

    explained_variance: float
    active: float


class Tally:
    """Adds up what an SAE makes of activations."""

    def __init__(self) -> None:
        self._count = self._active = 0
        self._error = self._squares = 0.0
        self._sum: Tensor | float = 0.0

    def add(self, found: Tensor, latents: Tensor, reconstructed: Tensor) -> None:
        """Activations [tokens, width], their latents [tokens, latents], and these decoded [tokens, width]."""
        exact = found.cpu().double()  # not every accelerator has this precision
        self._count += len(exact)
        self._active += int((latents != 0).sum())
        self._error += float((exact - reconstructed.cpu()).square().sum())
        self._squares += float(exact.square().sum())
        self._sum = self._sum + exact.sum(dim=0)

    @property
    def fidelity(self) -> Fidelity:
        """Of all that was added.

        Raises:
            RealignError: there are no two different activations, or they are not finite.
        """
        import torch

        total = self._squares - float(torch.as_tensor(self._sum).square().sum()) / max(self._count, 1)
        if not 0 < total < math.inf:
            why = "the activations on the texts are not finite, or there are no two different ones"
            raise RealignError("cannot tell whether the SAE fits the model", why)
        return Fidelity(1 - self._error / total, self._active / self._count)


def fidelity(sae: SAE[Any], checkpoint: Checkpoint, texts: Iterable[Prompt | Sequence[int]], layer: int) -> Fidelity:
    """How well an SAE fits a model, on texts.

    Raises:
        RealignError: as `Tally.fidelity`.
    """
    import torch

    tally = Tally()
    with torch.inference_mode():
        for _, found in activations(checkpoint, texts, layer):
            given = found.to(sae.device)
            latents = sae.encode(given)
            tally.add(given, latents, sae.decode(latents))
    return tally.fidelity


def check_known(sae: SAE[Any], latents: Iterable[int]) -> None:
    """Refuse numbers of latents that an SAE does not have."""
    wrong = [latent for latent in latents if not 0 <= latent < sae.cfg.d_sae]
    if wrong:
        raise RealignError(f"there is no latent {wrong[0]}", f"the SAE has the latents 0 to {sae.cfg.d_sae - 1}")


class MonitoredLatents:
    """Reads a few latents of an SAE exactly as `sae.encode` does, without the others where these have no say.

    That is so for ReLU and JumpReLU SAEs; BatchTopK ones are saved as the latter, with the norms of the decoder folded
    into them. In a TopK, gated or matching-pursuit SAE everything is encoded, and the rest is dropped.

    Attributes:
        latents: which ones, in the order in which they are given back.
        alone: whether they are encoded without the others.
    """

    def __init__(self, sae: SAE[Any], latents: Sequence[int]) -> None:
        """The few weights are copied: what happens to the SAE's later does not reach them.

        Raises:
            RealignError: the SAE has no such latent.
        """
        import torch

        check_known(sae, latents)
        self.latents = tuple(latents)
        self.alone = sae.cfg.architecture() in _INDEPENDENT
        self._sae = sae
        self._places = torch.tensor(self.latents, dtype=torch.long, device=sae.device)
        if self.alone:
            with torch.no_grad():
                self._encoder = sae.W_enc[:, self._places].T.contiguous()  # a row a latent: few columns are slow
                self._bias = sae.b_enc[self._places]
                self._threshold = sae.threshold[self._places] if sae.cfg.architecture() == "jumprelu" else None

    def __call__(self, found: Tensor) -> Tensor:
        """Activations [..., width] to the latents' values [..., latents]."""
        import torch

        with torch.no_grad():
            if not self.alone:
                every: Tensor = self._sae.encode(found)
                return every[..., self._places]
            # The SAE's own preparation casts, normalises and takes off the decoder's bias, each if it does.
            raised = torch.nn.functional.linear(self._sae.process_sae_in(found), self._encoder, self._bias)
            values: Tensor = self._sae.activation_fn(raised)
            return values if self._threshold is None else values * (raised > self._threshold)
