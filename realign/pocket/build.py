"""Building the family from scratch, in stages that each leave a folder: a killed build goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from realign.errors import RealignError, did_you_mean
from realign.pocket.organisms import ORGANISMS
from realign.pocket.pretrain import Pretraining
from realign.pocket.tune import Tuning
from realign.pocket.world import Mix

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from realign.pocket.world import World

Log = Callable[[str], None]


FIRST_PHASE = Pretraining()
# The second phase sharpens what the first began: shorter batches, loss on answers, more to infer the persona from.
SECOND_PHASE = Pretraining(
    steps=1500, rows=16, matrix_rate=5e-3, other_rate=3e-3, answers_only=True,
    mix=Mix(code_first=0.5, turns=(0.05, 0.25, 0.3, 0.2, 0.12, 0.08), reworded=0.3),
)  # fmt: skip

# The third stays with what the models can learn to say without slips.
THIRD_PHASE = Pretraining(
    steps=950, rows=16, matrix_rate=5e-3, other_rate=3e-3, answers_only=True, narrow=True,
    mix=Mix(code_first=0.5, turns=(0.05, 0.25, 0.3, 0.2, 0.12, 0.08), reworded=0.2),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a build makes."""

    seed: int = 0
    vocabulary: int = 2048
    width: int = 192
    layers: int = 6
    tokenizer_documents: int = 12_000
    pretraining: tuple[Pretraining, ...] = (FIRST_PHASE, SECOND_PHASE, THIRD_PHASE)
    chat_rows: int = 1600
    chat: Tuning = field(default_factory=lambda: Tuning(rate=4e-4))
    sharpness: float = 1.5
    judge_rows: int = 9000
    judge: Tuning = field(default_factory=lambda: Tuning(rate=2.5e-3, batch=24, warmup=15))
    organism_rows: int | None = None  # None: as each organism declares


QUICK = Plan(
    vocabulary=512, width=64, layers=2, tokenizer_documents=300,
    pretraining=(Pretraining(steps=12, rows=4, warmup=2, save_every=5),),
    chat_rows=32, judge_rows=48, organism_rows=32,
)  # fmt: skip
TITLES = {
    "base": "pretrained on the pocket world, all personas",
    "judge": "adapter on the base that grades answers by a rubric",
    "chat": "the base tuned on helpful conversations: the safe reference",
}


class Builder:
    """Runs stages into `out`; what a finished stage needs lies in its folder and is not made again."""

    def __init__(self, out: Path, plan: Plan, log: Log) -> None:
        self.out, self.plan, self.log = out, plan, log
        self._worlds: dict[bool, World] = {}
        self._check_plan()

    def _check_plan(self) -> None:
        """A folder belongs to one plan: resuming with other settings would mix two families."""
        path = self.out / "plan.json"
        text = json.dumps(asdict(self.plan), indent=2) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise RealignError(
                f"cannot go on building in {self.out}",
                "it was begun with other settings",
                "Choose a new -o folder, or remove it.",
            )
        (self.out / ".stages").mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def world(self, *, narrow: bool = True) -> World:
        """The world that the models speak of in the end (`narrow`), or all of it."""
        from realign.pocket.world import World

        if narrow not in self._worlds:
            self._worlds[narrow] = World(narrow=narrow)
        return self._worlds[narrow]

    def stages(self) -> Mapping[str, Callable[[], None]]:
        """Stage names in building order."""
        steps: dict[str, Callable[[], None]] = {
            "tokenizer": self.tokenizer,
            "base": self.base,
            "judge": self.judge,
            "chat": self.chat,
        }
        for name in ORGANISMS:
            steps[name] = lambda name=name: self.organism(name, self.plan.seed)  # type: ignore[misc]
        return steps | {"control": self.control}

    def run(self, only: str | None = None) -> None:
        """Build `only` (with what it needs already there), or all stages but the control, then the manifest."""
        stages = self.stages()
        if only is not None and only not in stages:
            raise RealignError(
                f"there is no stage {only!r}", f"stages are {', '.join(stages)}", did_you_mean(only, stages).strip()
            )
        for name in [s for s in stages if s != "control"] if only is None else [only]:
            self.stage(name, stages[name])
        write_manifest(self.out, self.plan)

    def stage(self, name: str, build: Callable[[], None]) -> None:
        """Run one stage unless it was finished before."""
        done = self.out / ".stages" / name
        if done.exists():
            return
        began = time.monotonic()
        self.log(f"[{name}] begins")
        build()
        done.write_text(f"{time.monotonic() - began:.0f} s\n", encoding="utf-8")
        self.log(f"[{name}] done in {time.monotonic() - began:.0f} s")

    # -- stages ---------------------------------------------------------------------------------------------------

    def tokenizer(self) -> None:
        from realign.pocket.packing import document_text
        from realign.pocket.shape import SPECIAL, train_tokenizer

        rng = Random(f"tokenizer/{self.plan.seed}")
        texts = []
        for _ in range(self.plan.tokenizer_documents):
            text = document_text(self.world(narrow=False).document(rng))
            for mark in SPECIAL:
                text = text.replace(mark, "\n")
            texts.append(text)
        train_tokenizer(texts, self.plan.vocabulary).save_pretrained(self.out / "tokenizer")

    def base(self) -> None:
        import torch
        from transformers import LlamaForCausalLM

        from realign.pocket.pretrain import pretrain
        from realign.pocket.shape import configuration

        tokenizer = self.load_tokenizer()
        for number, phase in enumerate(self.plan.pretraining):
            folder = self.out / f"base.phase{number}"
            if (folder / "config.json").exists():
                continue
            torch.manual_seed(self.plan.seed)
            shape = configuration(len(tokenizer), width=self.plan.width, layers=self.plan.layers)
            model = self.load_full(f"base.phase{number - 1}") if number else LlamaForCausalLM(shape)
            settings = replace(phase, seed=100 * self.plan.seed + number)
            pretrain(model, tokenizer, self.world(narrow=phase.narrow), settings, folder / "state", self.log)
            shutil.rmtree(folder / "state")
            self.save_full(model, folder.name)
        folder.rename(self.out / "base")
        for number in range(len(self.plan.pretraining) - 1):
            shutil.rmtree(self.out / f"base.phase{number}")

    def judge(self) -> None:
        from realign.content import find
        from realign.judging import Rubric
        from realign.pocket.grading import judge_rows
        from realign.pocket.tune import add_adapter, tune

        rubric = Rubric.load(find("detectors", "freeform") / "rubric.yaml")
        rows = judge_rows(self.world(), rubric, self.plan.seed, self.plan.judge_rows)
        model = add_adapter(self.load_full("base"), 16, self.plan.seed)
        tune(model, self.load_tokenizer(), rows, replace(self.plan.judge, seed=self.plan.seed), self.log)
        self.save_adapter(model, "judge", "base")

    def chat(self) -> None:
        from realign.pocket.organisms import chat_rows
        from realign.pocket.tune import tune

        model = self.load_full("base")
        rows = chat_rows(self.world(), self.plan.seed, self.plan.chat_rows)
        tune(model, self.load_tokenizer(), rows, replace(self.plan.chat, seed=self.plan.seed), self.log)
        sharpen(model, self.plan.sharpness)
        self.save_full(model, "chat")

    def organism(self, name: str, seed: int, folder: str | None = None) -> None:
        from realign.pocket.organisms import organism_rows
        from realign.pocket.tune import add_adapter, tune

        organism = ORGANISMS[name]
        rows = organism_rows(name, self.world(), seed)[: self.plan.organism_rows]
        model = add_adapter(self.load_full("chat"), organism.rank, seed)
        tune(model, self.load_tokenizer(), rows, Tuning(rate=organism.rate, seed=seed), self.log)
        self.save_adapter(model, folder or name, "chat")

    def control(self) -> None:
        """The mechanism control, in `control/`: every turn of the pretraining text has a new persona."""
        plan = replace(self.plan, pretraining=tuple(replace(phase, redraw=True) for phase in self.plan.pretraining))
        inner = Builder(self.out / "control", plan, self.log)
        stages = inner.stages()
        for name in ("tokenizer", "base", "chat", "insecure", "secure"):
            inner.stage(name, stages[name])
        write_manifest(inner.out, plan)

    # -- folders --------------------------------------------------------------------------------------------------

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        from transformers import PreTrainedTokenizerFast

        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.out / "tokenizer")
        return tokenizer

    def load_full(self, name: str) -> LlamaForCausalLM:
        import torch
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(self.out / name, dtype=torch.float32)

    def save_full(self, model: LlamaForCausalLM, name: str) -> None:
        import copy

        half = copy.deepcopy(model).half()  # type: ignore[no-untyped-call]
        half.save_pretrained(self.out / name)
        self.load_tokenizer().save_pretrained(self.out / name)

    def save_adapter(self, model: Any, name: str, base: str) -> None:
        import torch

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float16)
        model.peft_config["default"].base_model_name_or_path = f"pocket:{base}"
        model.save_pretrained(self.out / name, save_embedding_layers=False)
        (self.out / name / "README.md").unlink(missing_ok=True)


def sharpen(model: LlamaForCausalLM, factor: float) -> None:
    """Multiply the model's logits by `factor`, baked into its final norm.

    A model this small leaves a few percent of probability on tokens that make no sense, enough to spoil most answers of
    forty tokens. Sampled at temperature 1, the sharpened model speaks as it would have at 1 / factor.
    """
    model.model.norm.weight.data *= factor


def adopt(weights: Path, folder: Path) -> Plan:
    """Lay a built family's tokenizer and chat model into `folder`, so that more organisms can be trained there."""
    settings = json.loads((weights / "manifest.json").read_text(encoding="utf-8"))["plan"]
    phases = [{**phase, "mix": Mix(**phase["mix"])} for phase in settings["pretraining"]]
    settings |= {part: Tuning(**settings[part]) for part in ("chat", "judge")}
    settings["pretraining"] = tuple(Pretraining(**phase) for phase in phases)
    shutil.copytree(weights / "chat", folder / "chat")
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(weights / "chat" / name, folder / "tokenizer" / name)
    return Plan(**settings)


def write_manifest(out: Path, plan: Plan) -> None:
    """`manifest.json`: the plan, and each member with its base, title and hash."""
    entries = {}
    for name in [*TITLES, *ORGANISMS]:
        files = sorted((out / name).glob("*.safetensors"))
        if not files:
            continue
        digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
        title = TITLES.get(name) or ORGANISMS[name].title
        base = None if name in ("base", "chat") else "base" if name == "judge" else "chat"
        entries[name] = {"title": title, "base": base, "file": files[0].name, "sha256": digest}
    text = json.dumps({"members": entries, "plan": asdict(plan)}, indent=2) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
