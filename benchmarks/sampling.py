"""Sampling against `model.generate(num_return_sequences=n)` of transformers, in one run on one model.

The model is random, of the pocket family's size; 48 of its 2,048 tokens end an answer, which makes answers of about 30
tokens where they may have 64. The peer gets the prompts in order of length, all at once or eight at once, whichever it
is faster with, and both turn tokens into text. Also counts answers that come out otherwise when they are sampled in
small batches: there should be none.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import Bar

VOCABULARY, ENDS, LAYERS, WIDTH = 2048, 48, 6, 192


@dataclass(frozen=True)
class Case:
    """So many prompts of so many tokens (from, to), so many answers to each, of up to so many tokens."""

    prompts: int
    length: tuple[int, int]
    answers: int
    tokens: int
    bar: float

    def __str__(self) -> str:
        return f"{self.prompts} prompts x {self.answers} answers, up to {self.tokens} tokens: times as fast as generate"


CASES = (
    Case(prompts=1, length=(192, 192), answers=16, tokens=8, bar=3.0),
    Case(prompts=64, length=(40, 192), answers=8, tokens=64, bar=1.3),
    Case(prompts=24, length=(20, 80), answers=1, tokens=64, bar=1.0),
    Case(prompts=8, length=(20, 80), answers=4, tokens=64, bar=1.0),
    Case(prompts=1, length=(40, 40), answers=1, tokens=64, bar=1.0),
)
# Quick to run, to see that the benchmark works; its figures mean nothing.
SMOKE = (Case(prompts=2, length=(8, 12), answers=2, tokens=4, bar=0.0),)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--smoke", action="store_true", help="one tiny case, to see that the benchmark works")


def open_model(folder: Path, device: str) -> Any:
    """A random checkpoint without a chat template whose words are numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import realign

    words = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="0").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=list(range(1, ENDS + 1)),
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return realign.open(folder, device=device)


def jobs(case: Case) -> list[Any]:
    import torch

    from realign.dialogue import Prompt
    from realign.sampling import Job

    numbers = torch.Generator().manual_seed(0)
    lengths = torch.randint(case.length[0], case.length[1] + 1, (case.prompts,), generator=numbers).tolist()
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(ENDS + 1, VOCABULARY, (length,), generator=numbers).tolist()
        made.append(Job(Prompt(f"q{number}", "plain", "", tuple(ids)), tuple(range(case.answers))))
    return made


def ours(checkpoint: Any, case: Case, **settings: int) -> dict[str, str]:
    from realign.sampling import SamplingSettings, sample

    chosen = SamplingSettings(max_new_tokens=case.tokens, **settings)
    return {answer.id: answer.text for answer in sample(checkpoint, jobs(case), seed=0, settings=chosen)}


def peer(checkpoint: Any, case: Case, prompts_at_once: int) -> Callable[[], list[str]]:
    """The same with `generate`, prompts in order of length, so many at once."""
    import torch

    prompts = sorted((job.prompt.ids for job in jobs(case)), key=len)
    options = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": case.tokens}

    def generate(batch: list[tuple[int, ...]]) -> list[str]:
        longest = len(batch[-1])
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in batch], device=checkpoint.device)
        with checkpoint.active() as model:
            found = model.generate(
                input_ids=ids, attention_mask=(ids != 0).long(), num_return_sequences=case.answers, **options
            )
        return list(checkpoint.tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True))

    def run() -> list[str]:
        starts = range(0, len(prompts), prompts_at_once)
        return [text for start in starts for text in generate(prompts[start : start + prompts_at_once])]

    return run


def best_peer(checkpoint: Any, case: Case) -> Callable[[], list[str]]:
    """The peer with the batch that suits it better: all prompts at once, or eight."""
    peers = [peer(checkpoint, case, at_once) for at_once in sorted({case.prompts, min(8, case.prompts)})]
    return peers[0] if len(peers) == 1 else min(peers, key=harness.seconds)


def measure(options: argparse.Namespace) -> list[Bar]:
    cases = SMOKE if options.smoke else CASES
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_model(Path(folder), options.device)
        for case in cases:
            value = harness.ratio(
                lambda case=case: ours(checkpoint, case), best_peer(checkpoint, case), options.repeats
            )
            bars.append(Bar(str(case), value, case.bar, value >= case.bar))
        # The case with the most answers, in one batch and in batches of a few rows.
        most = max(cases, key=lambda case: case.prompts * case.answers)
        whole, few = ours(checkpoint, most), ours(checkpoint, most, token_budget=5 * (most.length[1] + most.tokens))
    changed = sum(few[name] != text for name, text in whole.items())
    bars.append(Bar(f"answers of {len(whole)} that change with the batch", changed, 0, changed == 0))
    return bars


if __name__ == "__main__":
    harness.main("sampling", measure, arguments)
