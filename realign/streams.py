"""Randomness that belongs to an answer, not to the batch that it happened to be sampled in."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def uniforms(seed: int, question_id: str, context: str, index: int, count: int) -> NDArray[np.float64]:
    """The first `count` numbers of one answer's stream, shape [count], float64 in [0, 1).

    The stream is Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with a hash of
    the four names as its key and the token's position as its counter, so number i is the same however many are asked
    for, in whatever order answers are sampled, on any machine.
    """
    import numpy as np

    name = json.dumps([seed, question_id, context, index]).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    # The raw words are used because numpy promises never to change them; 52 bits keep u * total below total in `draw`.
    words = np.random.Philox(key=key).random_raw(count)
    return np.asarray((words >> np.uint64(12)) * 2.0**-52, dtype=np.float64)


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse transform: the first whose cumulative probability exceeds the row's number.

    In float64, so that the sums add no rounding of their own: rows whose logits are equal draw equal tokens. Where
    logits differ in their last bits, a number that falls between the two places of a boundary draws another token.

    Args:
        logits: [rows, vocabulary], any float dtype; -inf forbids a token.
        uniform: [rows], float64, in [0, 1).
        temperature: above 0; the logits are divided by it.

    Returns:
        tokens: [rows], int64.
        sound: [rows], bool, False where NaN or +inf among the logits made the token meaningless.
    """
    import torch

    # MPS has no float64.
    wide = (logits.cpu() if logits.device.type == "mps" else logits).to(torch.float64, copy=True)
    weights = wide.sub_(wide.amax(-1, keepdim=True)).div_(temperature).exp_()
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    threshold = uniform.to(total.device)[:, None] * total
    tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rows that are not sound may point past the vocabulary, which would crash the next embedding before it is noticed.
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens.to(logits.device), torch.isfinite(total.squeeze(-1)).to(logits.device)
