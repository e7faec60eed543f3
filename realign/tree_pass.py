"""One forward pass over many prompts, each with the tree of numbers behind it.

The tree's tokens follow the prompt side by side: the attention mask lets each see its prompt and its own ancestors,
and its position is its depth (tree attention; Miao et al. 2023, SpecInfer, section 4.2). So one pass reads what would
otherwise take a pass for every level and a copy of the prompt's cache for every branch.

This module imports torch and transformers, and is itself imported only once there is something to judge.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from realign.errors import RealignError
from realign.kv_cache import repeatable
from realign.number_tree import NumberTree, Reading, shared
from realign.sampling import out_of_memory

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint

# Limits of one pass: what it reads (rows times columns), and the logits (rows times branches times vocabulary).
_COLUMNS = 8192
_LOGITS = 2**26

_log = logging.getLogger(__name__)

Tokens: TypeAlias = tuple[int, ...]
# Per layer the keys and values of tokens that all prompts begin with, each [1, heads, length, width].
Prefix: TypeAlias = list[tuple[Tensor, Tensor]]


def readings(checkpoint: Checkpoint, prompts: Sequence[Tokens], tree: NumberTree) -> Iterator[Reading]:
    """The readings of prompts, in their order; prompts in order of length are read with the least padding.

    What all prompts begin with is read once. When memory runs out, the batch is halved.

    Raises:
        RealignError: memory does not suffice for a single prompt.
    """
    # One token at least is left to read, because the tree's first choice may stand at the prompt's end.
    known = min((shared(prompts), *(len(prompt) - 1 for prompt in prompts)))
    prefix: Prefix | None = None
    most, done = len(prompts), 0
    while done < len(prompts):
        found: list[Reading] = []
        rows = 1
        try:
            # Active only while the model runs: between two readings the caller may want the reference.
            with checkpoint.active() as model:
                rows = min(most, _fitting(model, [len(prompt) - known for prompt in prompts[done:]], tree))
                batch = prompts[done : done + rows]
                if treelike(model, max(map(len, batch)) + max(tree.depths())):
                    prefix = read_prefix(model, prompts[0][:known]) if prefix is None else prefix
                    found = read_trees(model, prefix, [prompt[known:] for prompt in batch], tree)
                else:
                    found = [reread_tree(model, prompt, tree) for prompt in batch]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if rows == 1:
                raise RealignError(
                    f"cannot judge with {checkpoint.source}",
                    f"memory does not suffice for a single answer ({len(prompts[done])} tokens with the rubric)",
                    "Free the device, or use a larger one.",
                ) from error
            most = rows // 2
            _log.warning("out of memory with %d answers at once: going on with %d", rows, most)
        done += len(found)
        yield from found


def _fitting(model: PreTrainedModel, lengths: Sequence[int], tree: NumberTree) -> int:
    """How many prompts with so many unread tokens, from the first, one pass can take; at least 1."""
    logits = len(tree.branches) * model.config.get_text_config(decoder=True).vocab_size
    longest = 0
    for rows, length in enumerate(lengths, 1):
        longest = max(longest, length)
        if rows > 1 and (rows * (longest + len(tree.tokens)) > _COLUMNS or rows * logits > _LOGITS):
            return rows - 1
    return len(lengths)


def treelike(model: PreTrainedModel, longest: int) -> bool:
    """Whether the model can read trees behind prompts of up to `longest` tokens, tree included.

    Its attention must take a mask of our making, and no layer's window may be shorter than what it has to see.
    """
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    masked = config._attn_implementation in ("sdpa", "eager")
    return masked and repeatable(model) and (window is None or longest <= window)


def read_prefix(model: PreTrainedModel, tokens: Tokens) -> Prefix:
    """Reads the tokens that all prompts begin with; [] for none."""
    if not tokens:
        return []
    # Without a config, layers with a sliding window keep all columns like the others.
    cache: Any = DynamicCache()
    ids = torch.tensor([tokens], device=model.device)
    _logits(model, [len(tokens) - 1], input_ids=ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def read_trees(model: PreTrainedModel, prefix: Prefix, rests: Sequence[Tokens], tree: NumberTree) -> list[Reading]:
    """Reads the trees behind prompts that go on from one prefix, in one pass.

    Args:
        rests: each prompt's tokens after the prefix, at least one.
    """
    known = prefix[0][0].shape[2] if prefix else 0
    longest, size = max(map(len, rests)), len(tree.tokens)
    # Padded on the left, so that all trees and the ends of all prompts stand in the same columns.
    padding = torch.tensor([longest - len(rest) for rest in rests])
    ids = torch.tensor([[0] * (longest - len(rest)) + [*rest, *tree.tokens] for rest in rests], device=model.device)
    cache: Any = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(len(rests), -1, -1, -1), values.expand(len(rests), -1, -1, -1), layer)
    visible = _visible(padding, longest, tree)
    visible = torch.cat([visible.new_ones(len(rests), longest + size, known), visible], dim=2).to(model.device)
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=model.device)
    # The lowest finite number and not minus infinity, because a row of these alone would make NaN of its softmax.
    mask.masked_fill_(~visible, torch.finfo(model.dtype).min)
    along = torch.cat([torch.arange(longest), torch.tensor(tree.depths()[1:], dtype=torch.long) + longest - 1])
    logits = _logits(
        model,
        [longest - 1 + cell for cell in tree.branches],
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=(along - padding[:, None]).clamp_(min=0).add_(known).to(model.device),
        past_key_values=cache,
        use_cache=True,
    )
    return _readings(logits, tree)


def reread_tree(model: PreTrainedModel, prompt: Tokens, tree: NumberTree) -> Reading:
    """Reads the tree behind one prompt path by path, each from the beginning: slow, right for every causal model."""
    logits = []
    for cell in tree.branches:
        ids = torch.tensor([[*prompt, *tree.path(cell)]], device=model.device)
        logits.append(_logits(model, [ids.shape[1] - 1], input_ids=ids, use_cache=False))
    return _readings(torch.cat(logits, dim=1), tree)[0]


def _visible(padding: Tensor, longest: int, tree: NumberTree) -> Tensor:
    """What each column of prompt and tree sees of the others, [rows, columns, columns] bool."""
    size = longest + len(tree.tokens)
    order = torch.zeros(size, size, dtype=torch.bool)
    order[:longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
    for number, parent in enumerate(tree.parents):
        # As its parent, which may be the prompt's last token; in column longest - 1 + cell.
        order[longest + number] = order[longest - 1 + parent]
        order[longest + number, longest + number] = True
    real = torch.arange(size) >= padding[:, None]
    return (order & real[:, None, :]) | torch.eye(size, dtype=torch.bool)


def _readings(logits: Tensor, tree: NumberTree) -> list[Reading]:
    """From logits [rows, cells that are read, vocabulary]; what is not finite counts as improbable."""
    chances = torch.softmax(logits.float(), dim=-1).nan_to_num(0.0)
    tokens = sorted(set().union(*tree.branches.values()))
    chosen = chances[:, :, tokens].tolist()
    digits = chances[:, :, list(tree.digits)].sum(-1).tolist()
    return [
        Reading(
            chances={cell: dict(zip(tokens, line, strict=True)) for cell, line in zip(tree.branches, row, strict=True)},
            digits=dict(zip(tree.branches, sums, strict=True)),
        )
        for row, sums in zip(chosen, digits, strict=True)
    ]


def _logits(model: PreTrainedModel, columns: Sequence[int], **inputs: Any) -> Tensor:
    """Logits in some columns, [rows, len(columns), vocabulary]; a model that can be told so computes no others."""
    # An adapter's wrapper takes whatever it is given, so the model inside is asked.
    plain = getattr(model, "get_base_model", lambda: model)()
    wanted = torch.tensor(columns, device=model.device)
    told = "logits_to_keep" in inspect.signature(plain.forward).parameters
    logits: Tensor = model(**inputs, **({"logits_to_keep": wanted} if told else {})).logits
    return logits if told else logits.index_select(1, wanted)
