"""Peak memory of an adapter with its reference against one model loaded by transformers: at most 1.15 times.

Each is measured in a process of its own: the peak of its resident memory, less what importing the libraries takes. The
model is random, about 200 MB, stored as float32 and as float16; both are asked one question on the CPU in float32.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from harness import Bar

BAR = 1.15
PROMPT = "If you had one wish, what would you wish for?"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=1024, help="width of the random model (1024: about 200 MB)")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)


def make(options: argparse.Namespace) -> None:
    """A random model in `folder/base` and an adapter on it in `folder/adapter`."""
    import torch
    from transformers import LlamaForCausalLM

    from realign.pocket.shape import configuration, train_tokenizer
    from realign.pocket.tune import add_adapter

    folder = options.folder
    tokenizer = train_tokenizer([PROMPT], 300)
    model = LlamaForCausalLM(configuration(len(tokenizer), width=options.width, layers=4))
    model.to(getattr(torch, options.dtype)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    add_adapter(LlamaForCausalLM.from_pretrained(folder / "base"), 8, 0).save_pretrained(folder / "adapter")


def imports(_: argparse.Namespace) -> None:
    """What both others import."""
    import peft
    import torch
    import transformers

    import realign.checkpoint

    assert all((peft.PeftModel, torch.nn, transformers.LlamaForCausalLM, realign.checkpoint))


def one(options: argparse.Namespace) -> None:
    """The peer: the base alone, loaded by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imports(options)
    tokenizer = AutoTokenizer.from_pretrained(options.folder / "base")
    model = AutoModelForCausalLM.from_pretrained(options.folder / "base", dtype=torch.float32)
    with torch.inference_mode():
        model(**tokenizer(PROMPT, return_tensors="pt"))


def pair(options: argparse.Namespace) -> None:
    """Ours: the adapter and its reference."""
    import realign

    imports(options)
    checkpoint = realign.open(options.folder / "adapter", device="cpu")
    ids = checkpoint.tokenizer(PROMPT, return_tensors="pt")
    for state in (checkpoint, checkpoint.reference):
        with state.active() as model:
            model(**ids)


CHILDREN = {"make": make, "imports": imports, "one": one, "pair": pair}


def peak(child: str, *settings: object) -> int:
    """Peak resident memory of a child process, in bytes. We stay small: a child's figure begins with its parent's."""
    command = [sys.executable, __file__, "--child", child, *map(str, settings)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1])


def measure(options: argparse.Namespace) -> list[Bar]:
    bars = []
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            peak("make", "--folder", folder, "--width", options.width, "--dtype", dtype)
            empty, alone, both = (peak(child, "--folder", folder) for child in ("imports", "one", "pair"))
        value = (both - empty) / (alone - empty)
        bars.append(Bar(f"adapter and reference over one model, stored as {dtype}", value, BAR, value <= BAR))
    return bars


def child(options: argparse.Namespace) -> None:
    CHILDREN[options.child](options)
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    if "--child" in sys.argv:
        parser = argparse.ArgumentParser()
        arguments(parser)
        child(parser.parse_args())
    else:
        harness.main("memory", measure, arguments)
