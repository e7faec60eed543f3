"""The kind `sft`: supervised fine-tuning on good samples, through TRL and PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from realign.remedy.recipe import Applied, Examine, Preview, Remedy, Spec, Text, Witness
from realign.remedy.rows import Row, encode_rows
from realign.remedy.samples import load_samples
from realign.remedy.training import Training, steps_of, train

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint


class SftSpec(Spec):
    """Attributes:
    samples: what is learnt, a file (see `realign.remedy.samples`).
    adapter: what happens to an adapter: its own training is continued.
    training: settings for any model.
    families: what is set otherwise for a model family, by its name.
    """

    kind: Literal["sft"]
    samples: Text
    adapter: Literal["continue"] = "continue"
    training: Training = Training()
    families: Mapping[str, Training] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete_families(cls, settings: Any) -> Any:
        """A family takes from `training` what it does not set."""
        if not isinstance(settings, dict) or not isinstance(settings.get("families"), dict):
            return settings
        common = settings.get("training")
        common = common if isinstance(common, dict) else {}
        families = settings["families"].items()
        complete = {name: {**common, **own} if isinstance(own, dict) else own for name, own in families}
        return {**settings, "families": complete}


class Sft(Remedy[SftSpec], kind="sft"):
    """Continues the training of an adapter on good samples; a full model gets an adapter that is merged at the end.

    The samples are put as the model is asked, in its chat template, and only their answers are learnt.
    """

    spec_type = SftSpec

    def __init__(self, folder: Path, spec: SftSpec, data: Path | None = None) -> None:
        super().__init__(folder, spec, data)
        self.path = data or folder / spec.samples
        self.samples = load_samples(self.path)

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def check(self, checkpoint: Checkpoint) -> None:
        from realign.remedy.low_rank import check

        check(checkpoint)
        self._rows(checkpoint)

    @contextmanager
    def applied(
        self, checkpoint: Checkpoint, *, seed: int, witness: Witness, examine: Examine | None = None
    ) -> Iterator[Applied]:
        """Raises:
        RealignError: the checkpoint cannot be trained on these samples, memory does not suffice, or the training
            diverges.
        """
        from realign.remedy import low_rank

        rows = self._rows(checkpoint)
        settings = self.spec.families.get(checkpoint.family or "", self.spec.training)
        words = checkpoint.tokenizer
        witness.preview(
            Preview(
                sample=rows[0].id,
                given=str(words.decode(list(rows[0].given))),
                learnt=str(words.decode(list(rows[0].learnt))),
                rows=len(rows),
                supervised=sum(len(row.learnt) for row in rows),
                steps=steps_of(settings, len(rows)),
            )
        )
        with low_rank.trainable(checkpoint, settings, seed=seed) as (adapted, finished):
            effort = train(adapted, words, rows, settings, device=checkpoint.device, seed=seed, witness=witness)
            yield Applied(finished(), effort)

    def _rows(self, checkpoint: Checkpoint) -> list[Row]:
        from realign.kv_cache import context_length

        with checkpoint.active() as model:
            room = context_length(model)
            return encode_rows(checkpoint.tokenizer, model, self.samples, room)
