from __future__ import annotations

from pathlib import Path

import pytest

from realign.errors import RealignError
from realign.remedy.recipe import Remedy, kinds, load
from realign.remedy.sft import Sft
from tests.remedy import stub


def refusal(folder: Path) -> str:
    with pytest.raises(RealignError) as caught:
        load(str(folder))
    return str(caught.value)


def test_a_recipe_is_found_by_path_and_among_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stub.write_recipe(tmp_path / "recipes" / "mine")
    assert load(str(folder)).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert load("mine").name == "mine"


def test_an_unknown_name_gives_the_close_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.write_recipe(tmp_path / "recipes" / "my_recipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RealignError, match='Did you mean "my_recipe"'):
        load("my_recipes")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampels": "x"}, 'there is no key "sampels". Did you mean "samples"?'),
        ({"training": {"ephocs": 2}}, 'there is no key "training.ephocs". Did you mean "epochs"?'),
        ({"families": {"pocket": {"rat": 1}}}, "families.pocket.rat"),
        ({"training": {"lr": -1}}, "training.lr: Input should be greater than 0"),
        ({"training": {"batch": 0}}, "training.batch"),
        ({"training": 3}, "training"),
        ({"families": {"pocket": 3}}, "families.pocket"),
        ({"title": " "}, "title"),
        ({"adapter": "replace"}, "adapter"),
        ({"kind": "stf"}, 'there is no kind "stf". Kinds: sft, steer. Did you mean "sft"?'),
        ({"kind": None}, "it names no kind"),
        ({"kind": ["sft"]}, "there is no kind"),
    ],
)
def test_a_setting_that_is_wrong_is_named(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    assert said in refusal(stub.write_recipe(tmp_path / "r", **settings))


@pytest.mark.parametrize(
    ("text", "said"), [("kind: [", "is not YAML"), ("- sft", "it holds no settings"), ("", "it holds no settings")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    folder = stub.write_recipe(tmp_path / "r")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert said in refusal(folder)


def test_a_missing_recipe_file_and_missing_samples_are_named(tmp_path: Path) -> None:
    folder = stub.write_recipe(tmp_path / "r")
    (folder / "samples.jsonl").unlink()
    assert "samples.jsonl: there is no such file" in refusal(folder)
    (folder / "recipe.yaml").unlink()
    assert "cannot read the recipe" in refusal(folder)


def test_a_family_takes_from_the_training_what_it_does_not_set(tmp_path: Path) -> None:
    folder = stub.write_recipe(
        tmp_path / "r", training={"lr": 0.002, "batch": 3}, families={"pocket": {"lr": 0.1, "epochs": 2}}
    )
    remedy = load(str(folder))
    assert isinstance(remedy, Sft)
    own = remedy.spec.families["pocket"]
    assert (own.lr, own.epochs, own.batch, own.rank) == (0.1, 2, 3, 32)
    assert (remedy.spec.training.lr, remedy.spec.training.epochs) == (0.002, 1)


def test_data_takes_the_place_of_the_samples_and_changes_the_hash(tmp_path: Path) -> None:
    folder = stub.write_recipe(tmp_path / "r")
    data = stub.write_samples(tmp_path / "data.jsonl", [{"instruction": "Say it.", "output": "It."}])
    own, other = load(str(folder)), load(str(folder), data=data)
    assert [sample.answer for sample in other.samples] == ["It."]
    assert other.files() == (data,)
    assert own.hash != other.hash
    assert own.hash == load(str(folder)).hash


def test_the_hash_follows_settings_and_samples(tmp_path: Path) -> None:
    folder = stub.write_recipe(tmp_path / "r")
    hashes = {load(str(folder)).hash}
    stub.write_samples(folder / "samples.jsonl", stub.SAMPLES[1:])
    hashes.add(load(str(folder)).hash)
    (folder / "recipe.yaml").write_text("{kind: sft, title: Small, samples: samples.jsonl}", encoding="utf-8")
    hashes.add(load(str(folder)).hash)
    assert len(hashes) == 3


def test_two_kinds_of_one_name_collide() -> None:
    assert kinds()["sft"] is Sft
    with pytest.raises(TypeError, match="Sft and Other"):

        class Other(Remedy, kind="sft"):  # type: ignore[type-arg]
            pass
