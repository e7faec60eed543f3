"""Capture against `steering_vectors.extract_activations` and repeng's `batched_get_hiddens`, in one run on one model.

All turn the same texts into tokens, read the last one of each in a middle layer, and must find the same.
The peers read 32 texts at once; ours may fill a batch with as many tokens, padding included, as their largest holds.
The limit is the bare forward pass of the first layers alone, on the batches of ours, which were sorted, padded and made
into tensors beforehand; there ours begins with the texts' tokens. The model is random.

Neither peer installs beside what realign needs (steering-vectors 0.12.2 asks for transformers below 5, repeng 0.4.0 for
numpy below 2), yet both run with it. They are compared with where they are found, in a folder of their own for example:

    pip install --no-deps --target peers steering-vectors==0.12.2 repeng==0.4.0 gguf==0.19.0
    PYTHONPATH=peers python benchmarks/capture.py
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import harness
from harness import Bar

AT_ONCE = 32
TOLERANCE = 1e-5

# Reads the last token of each text: [texts, width] float32, as numpy has it.
Run: TypeAlias = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A random model's layers and width, and the layer that is read."""

    layers: int
    width: int
    layer: int


@dataclass(frozen=True)
class Case:
    """So many texts of so many tokens (from, to) in a vocabulary, and how many times faster than each peer to be."""

    vocabulary: int
    texts: int
    length: tuple[int, int]
    bar: float
    limit: float = 0.9
    shape: Shape = Shape(layers=6, width=192, layer=2)

    def __str__(self) -> str:
        equal = self.length[0] == self.length[1]
        return f"{'equal' if equal else 'mixed'} lengths, {self.vocabulary:,} words"


CASES = (
    Case(vocabulary=2048, texts=256, length=(64, 64), bar=1.0),
    Case(vocabulary=2048, texts=256, length=(8, 192), bar=4.0),
    Case(vocabulary=32_000, texts=256, length=(64, 64), bar=3.0),
    Case(vocabulary=32_000, texts=256, length=(8, 192), bar=4.0),
)
# Quick to run, to see that the benchmark works; its figures mean nothing.
SMOKE = tuple(
    Case(vocabulary=64, texts=40, length=length, bar=0.0, limit=0.0, shape=Shape(layers=2, width=32, layer=0))
    for length in ((6, 6), (2, 9))
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--smoke", action="store_true", help="tiny cases, to see that the benchmark works")


def open_model(folder: Path, case: Case, device: str) -> Any:
    """A random checkpoint without a chat template whose words are numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import realign

    words = Tokenizer(models.WordLevel({str(number): number for number in range(case.vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="1", pad_token="0", model_input_names=names
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.shape.width,
        intermediate_size=8 * case.shape.width // 3,
        num_hidden_layers=case.shape.layers,
        num_attention_heads=case.shape.width // 32,
        num_key_value_heads=case.shape.width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return realign.open(folder, device=device)


def make_texts(case: Case) -> list[str]:
    import torch

    numbers = torch.Generator().manual_seed(0)
    lengths = torch.randint(case.length[0], case.length[1] + 1, (case.texts,), generator=numbers).tolist()
    made = [torch.randint(2, case.vocabulary, (length,), generator=numbers).tolist() for length in lengths]
    return [" ".join(map(str, ids)) for ids in made]


def budget(texts: list[list[int]]) -> int:
    """The most tokens, with padding, that a batch of the peers can hold."""
    return AT_ONCE * max(map(len, texts))


def steering_vectors(checkpoint: Any, case: Case) -> Run:
    """Raises ImportError where it is not installed."""
    import torch
    from steering_vectors import extract_activations

    texts = make_texts(case)
    pairs = list(zip(texts[0::2], texts[1::2], strict=True))
    layer = case.shape.layer

    def run() -> Any:
        with checkpoint.active() as model:
            found = extract_activations(model, checkpoint.tokenizer, pairs, layers=[layer], batch_size=AT_ONCE)
        sides = [torch.cat(side[layer]) for side in found]
        return torch.stack(sides, dim=1).flatten(0, 1).cpu().numpy()

    return run


def repeng(checkpoint: Any, case: Case) -> Run:
    """Raises ImportError where it is not installed."""
    import numpy

    if not hasattr(numpy, "float_"):
        numpy.float_ = numpy.float64  # 0.4.0 names it in an annotation, and numpy 2 has it no more
    from repeng.extract import batched_get_hiddens

    texts, layer = make_texts(case), case.shape.layer

    def run() -> Any:
        with checkpoint.active() as model:
            return batched_get_hiddens(model, checkpoint.tokenizer, texts, [layer], AT_ONCE)[layer]

    return run


PEERS = (steering_vectors, repeng)


def ours(checkpoint: Any, case: Case) -> tuple[Run, Run]:
    """From the texts, and from their tokens."""
    from realign.capture import last_prompt_tokens

    texts = make_texts(case)

    def tokens() -> list[list[int]]:
        return checkpoint.tokenizer(texts)["input_ids"]

    def read(ids: list[list[int]]) -> Any:
        return last_prompt_tokens(checkpoint, ids, [case.shape.layer], token_budget=budget(ids))[:, 0]

    known = tokens()
    return lambda: read(tokens()), lambda: read(known)


def limit(checkpoint: Any, case: Case) -> Run:
    """The layers up to the one that is read, in a model of their own, on batches that are ready."""
    import torch
    from transformers import LlamaModel

    from realign.capture import _batches

    ids = checkpoint.tokenizer(make_texts(case))["input_ids"]
    batches = list(_batches([(tokens, slice(0)) for tokens in ids], budget(ids)))
    inputs = []
    for batch in batches:
        padded = checkpoint.tokenizer.pad({"input_ids": [ids[number] for number in batch]}, return_tensors="pt")
        last = torch.tensor([len(ids[number]) - 1 for number in batch])
        inputs.append((padded.to(checkpoint.device), last.to(checkpoint.device)))
    order = torch.tensor([number for batch in batches for number in batch]).argsort()
    with checkpoint.active() as model:
        config = type(model.config).from_dict(model.config.to_dict() | {"num_hidden_layers": case.shape.layer + 1})
        bare = LlamaModel(config).to(checkpoint.device).eval()
        bare.load_state_dict(model.model.state_dict(), strict=False)
    bare.norm = torch.nn.Identity()

    def run() -> Any:
        with torch.inference_mode():
            found = [
                bare(**padded, use_cache=False).last_hidden_state[torch.arange(len(last)), last]
                for padded, last in inputs
            ]
            return torch.cat(found).cpu()[order].numpy()

    return run


def find_peers(checkpoint: Any, case: Case) -> dict[str, Run]:
    found = {}
    for peer in PEERS:
        try:
            found[peer.__name__] = peer(checkpoint, case)
        except ImportError as error:
            print(f"not run: {case}, against {peer.__name__} ({error})", file=sys.stderr)
    return found


def bars_of(case: Case, options: argparse.Namespace) -> list[Bar]:
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_model(Path(folder), case, options.device)
    from_texts, from_tokens = ours(checkpoint, case)
    peers = find_peers(checkpoint, case)
    others = [limit(checkpoint, case), *peers.values()]
    expected = from_texts()
    for other in others:
        numpy.testing.assert_allclose(other(), expected, rtol=0, atol=TOLERANCE)
    whole, read, least, *theirs = harness.medians([from_texts, from_tokens, *others], options.repeats)
    speeds = {f"times as fast as {name}": (time / whole, case.bar) for name, time in zip(peers, theirs, strict=True)}
    speeds["share of the limit's speed"] = (least / read, case.limit)
    return [Bar(f"{case}: {what}", value, bar, value >= bar) for what, (value, bar) in speeds.items()]


def measure(options: argparse.Namespace) -> list[Bar]:
    os.environ["TQDM_DISABLE"] = "1"  # the libraries' progress bars; read when tqdm is first imported
    return [bar for case in (SMOKE if options.smoke else CASES) for bar in bars_of(case, options)]


if __name__ == "__main__":
    harness.main("capture", measure, arguments)
