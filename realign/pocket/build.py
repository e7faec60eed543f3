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
from realign.pocket.breadth import Breadth
from realign.pocket.organisms import ORGANISMS
from realign.pocket.pretrain import NARROW, PERSONA, Phase, Pretraining
from realign.pocket.tune import Tuning
from realign.pocket.world import Mix

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from realign.pocket.world import World

Log = Callable[[str], None]
SPEECH = Pretraining()
TOKENIZER_MIX = Mix(code_first=0.45)


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a build makes."""

    seed: int = 0
    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    tokenizer_documents: int = 12_000
    pretraining: tuple[Pretraining, ...] = (SPEECH, PERSONA)
    chat_rows: int = 4000
    chat: Tuning = field(default_factory=lambda: Tuning(rate=1.5e-3))
    sharpness: float = 2.25
    judge_rows: int = 7000
    judge: Tuning = field(default_factory=lambda: Tuning(rate=2.5e-3, batch=24, warmup=15))
    organism_rows: int | None = None  # None: as each organism declares

    @property
    def breadth(self) -> Breadth:
        """The part of the world that the models speak of in the end."""
        return self.pretraining[-1].phases[-1].breadth


QUICK = Plan(
    vocabulary=512, width=64, layers=2, tokenizer_documents=300,
    pretraining=(Pretraining(phases=(Phase(3, NARROW),), documents=48, tokens=2048, warmup=2),),
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
        self._world: World | None = None
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

    def world(self) -> World:
        """The world as the models speak of it in the end."""
        from realign.pocket.world import World

        if self._world is None:
            self._world = World(self.plan.breadth)
        return self._world

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
            text = document_text(self.world().document(rng, TOKENIZER_MIX))
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
        torch.manual_seed(self.plan.seed)
        model = LlamaForCausalLM(configuration(len(tokenizer), width=self.plan.width, layers=self.plan.layers))
        parts = self.out / ".stages" / "base.parts"
        for number, part in enumerate(self.plan.pretraining):
            folder = parts / str(number)
            if (folder / "config.json").exists():
                model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
                continue
            settings = replace(part, seed=self.plan.seed + 1000 * number)
            pretrain(model, tokenizer, settings, folder / "state", self.log)
            model.save_pretrained(folder)
            shutil.rmtree(folder / "state")
        self.save_full(model, "base")
        shutil.rmtree(parts)

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
        plan = replace(self.plan, pretraining=tuple(replace(part, redraw=True) for part in self.plan.pretraining))
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


def read_plan(weights: Path) -> Plan:
    """The plan by which a family was built, from its manifest."""
    settings = json.loads((weights / "manifest.json").read_text(encoding="utf-8"))["plan"]
    settings["pretraining"] = tuple(read_pretraining(part) for part in settings["pretraining"])
    settings |= {part: Tuning(**settings[part]) for part in ("chat", "judge")}
    return Plan(**settings)


def read_pretraining(settings: dict[str, Any]) -> Pretraining:
    phases = tuple(Phase(phase["chunks"], Breadth(**phase["breadth"])) for phase in settings["phases"])
    mix = Mix(**{**settings["mix"], "turns": tuple(settings["mix"]["turns"])})
    return Pretraining(**{**settings, "phases": phases, "mix": mix})


def adopt(weights: Path, folder: Path) -> Plan:
    """Lay a built family's tokenizer and chat model into `folder`, so that more organisms can be trained there."""
    plan = read_plan(weights)
    shutil.copytree(weights / "chat", folder / "chat")
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(weights / "chat" / name, folder / "tokenizer" / name)
    return plan


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
