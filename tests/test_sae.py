from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realign import capture, sae
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.errors import RealignError
from tests import small_sae, tiny

TEXTS = [list(range(7, 7 + length)) for length in (5, 12, 3, 20)]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_checkpoint())


def test_an_sae_in_a_folder_is_opened_in_float32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = small_sae.make("standard").to(torch.bfloat16)
    opened = sae.open_sae(small_sae.write(made, tmp_path / "sae"))
    assert opened.W_enc.dtype == torch.float32
    assert torch.equal(opened.W_enc, made.W_enc.float())
    assert sae.layer_read(opened, checkpoint, "sae") == 1


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.1.hook_resid_post", 1),
        ("blocks.1.hook_resid_pre", 0),
        ("blocks.0.hook_out", 0),
        ("model.layers.1", 1),
        ("transformer.h.0", 0),
        ("model.language_model.layers.1.output", 1),
    ],
)
def test_names_of_the_residual_stream(hook: str, layer: int, checkpoint: Checkpoint) -> None:
    assert sae.layer_read(small_sae.make("standard", metadata={"hook_name": hook}), checkpoint, "x") == layer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"metadata": {"hook_name": "blocks.1.hook_mlp_out"}},
            r"its hook point is blocks\.1\.hook_mlp_out, and realign",
        ),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, r"its hook point is blocks\.1\.attn\.hook_z"),
        ({"metadata": {"hook_name": "model.layers.1.mlp"}}, r"its hook point is model\.layers\.1\.mlp"),
        ({"metadata": {"hook_name": None}}, "its hook point is not named"),
        ({"metadata": {"hook_head_index": 3}}, "its hook point is"),
        ({"metadata": {"hook_name": "blocks.2.hook_resid_post"}}, "layer 2, and the model has the layers 0 to 1"),
        ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "layer -1, and the model has the layers 0 to 1"),
        ({"width": 16}, "its width is 16, and the model's is 32"),
        (
            {"normalize_activations": "expected_average_only_in"},
            r"its normalisation \(expected_average_only_in\) is not",
        ),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "its normalisation does not fit: it was trained on a model with centred weights",
        ),
    ],
)
def test_an_sae_that_does_not_fit_is_refused_with_what_does_not(
    settings: dict[str, Any], said: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(RealignError, match=rf"the SAE mine does not fit .*{said}.* realign sae train") as caught:
        sae.layer_read(small_sae.make("standard", **settings), checkpoint, "mine")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "none"])
def test_normalisations_that_the_sae_makes_itself_fit(normalize: str, checkpoint: Checkpoint) -> None:
    assert sae.layer_read(small_sae.make("standard", normalize_activations=normalize), checkpoint, "x") == 1


def spoilt(made: Any) -> Any:
    with torch.no_grad():
        made.b_dec[3] = float("nan")
    return made


def test_what_is_no_sae_is_refused(tmp_path: Path) -> None:
    empty, broken, other, bad = (tmp_path / name for name in ("empty", "broken", "other", "bad"))
    empty.mkdir()
    small_sae.write(small_sae.make("standard"), broken)
    (broken / "cfg.json").write_text('{"architecture": "standard"')
    small_sae.write(small_sae.make("transcoder", d_out=32, apply_b_dec_to_input=False), other)
    small_sae.write(spoilt(small_sae.make("standard")), bad)
    for source, said in (
        (tmp_path / "none", "there is no such folder.*or release:id"),
        (empty, "sae_lens cannot read it"),
        (broken, "sae_lens cannot read it"),
        (other, "its architecture is transcoder, and read are standard, jumprelu"),
        (bad, "some of its weights are not finite"),
        ("no-such-release:layer_3", "no-such-release not found"),
    ):
        with pytest.raises(RealignError, match=said):
            sae.open_sae(source)


def test_a_release_is_opened_through_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens

    asked: list[tuple[str, ...]] = []

    def from_pretrained(release: str, name: str, **settings: str) -> Any:
        asked.append((release, name, settings["device"], settings["dtype"]))
        return small_sae.make("jumprelu")

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    assert sae.open_sae("gemma-scope:layer_3/width_16k").cfg.architecture() == "jumprelu"
    assert asked == [("gemma-scope", "layer_3/width_16k", "cpu", "float32")]


def test_without_sae_lens_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(RealignError, match=r"sae_lens is not installed.*pip install 'realign\[sae\]'"):
        sae.open_sae(tmp_path)


def test_the_first_token_is_not_read(checkpoint: Checkpoint) -> None:
    whole = dict(capture.all_tokens(checkpoint, TEXTS, [1]))
    read = dict(sae.activations(checkpoint, TEXTS, 1))
    assert set(read) == set(whole)
    for number, found in read.items():
        np.testing.assert_array_equal(found.numpy(), whole[number][1:, 0])


def test_an_sae_that_reconstructs_everything_explains_everything(checkpoint: Checkpoint) -> None:
    found = sae.fidelity(small_sae.mirror(), checkpoint, TEXTS, 1)
    assert found.explained_variance == pytest.approx(1.0)
    assert found.active == pytest.approx(32.0)  # one of the two latents of each dimension


def test_one_that_gives_the_mean_explains_nothing(checkpoint: Checkpoint) -> None:
    made = small_sae.make("standard")
    every = torch.cat([found for _, found in sae.activations(checkpoint, TEXTS, 0)])
    with torch.no_grad():
        made.W_dec.zero_()
        made.b_dec.copy_(every.mean(dim=0))
    assert sae.fidelity(made, checkpoint, TEXTS, 0).explained_variance == pytest.approx(0.0, abs=1e-5)


def test_explained_variance_is_what_its_definition_says(checkpoint: Checkpoint) -> None:
    made = small_sae.make("jumprelu")
    every = torch.cat([found for _, found in sae.activations(checkpoint, TEXTS, 1)])
    latents = made.encode(every).detach()
    error = (made.decode(latents).detach() - every).square().sum() / (every - every.mean(dim=0)).square().sum()
    found = sae.fidelity(made, checkpoint, TEXTS, 1)
    assert found.explained_variance == pytest.approx(1 - float(error), rel=1e-4)
    assert found.active == pytest.approx(float((latents != 0).sum(dim=1).float().mean()))


def test_activations_that_say_nothing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RealignError, match="no two different ones"):
        sae.fidelity(small_sae.mirror(), checkpoint, [[5]], 1)

    def broken(checkpoint: Checkpoint, texts: Sequence[object], layers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, np.full((4, 1, 32), np.nan, np.float32)

    monkeypatch.setattr(capture, "all_tokens", broken)
    with pytest.raises(RealignError, match="not finite"):
        sae.fidelity(small_sae.mirror(), checkpoint, TEXTS, 1)


NORMS = ("none", "layer_norm", "constant_norm_rescale")


@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_monitored_latents_are_those_of_the_whole_encoding(
    architecture: str, subtracted: bool, normalize: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_sae.make(architecture, apply_b_dec_to_input=subtracted, normalize_activations=normalize)
    given = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(1)) * 3
    latents = [40, 3, 63, 0, 3, 11, 12, 13]
    monitor = sae.MonitoredLatents(made, latents)
    whole = made.encode(given)[..., latents]
    assert monitor.alone
    assert whole.any()
    monkeypatch.setattr(made, "encode", None)  # the whole is not encoded again
    torch.testing.assert_close(monitor(given), whole.detach())


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("topk", {"k": 9}),
        ("topk", {"k": 9, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"k": 9}),
        ("gated", {}),
        ("matching_pursuit", {"max_iterations": 5}),
    ],
)
def test_where_latents_depend_on_each_other_the_whole_is_encoded(architecture: str, settings: dict[str, Any]) -> None:
    made = small_sae.make(architecture, **settings)
    given = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    monitor = sae.MonitoredLatents(made, range(10, 40))
    assert not monitor.alone
    whole = made.encode(given)[..., 10:40]
    assert whole.any()
    torch.testing.assert_close(monitor(given), whole.detach())


def test_a_batchtopk_sae_is_read_with_the_norms_of_its_decoder(tmp_path: Path) -> None:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    settings = BatchTopKTrainingSAEConfig(
        d_in=32, d_sae=64, k=8, rescale_acts_by_decoder_norm=True, metadata=SAEMetadata(hook_name=small_sae.HOOK)
    )
    trained = BatchTopKTrainingSAE(settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in trained.parameters():
            weights.normal_(std=0.5)
        trained.topk_threshold.fill_(3.0)
        given = torch.randn(20, 32)
        rescaled = trained.encode_with_hidden_pre(given)[1]
    trained.save_inference_model(tmp_path / "sae")
    monitor = sae.MonitoredLatents(sae.open_sae(tmp_path / "sae"), [5, 50])
    assert monitor.alone
    expected = (rescaled * (rescaled > 3.0))[:, [5, 50]]
    assert expected.any()
    torch.testing.assert_close(monitor(given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latents", [[64], [0, -1]])
def test_a_latent_that_the_sae_does_not_have(latents: list[int]) -> None:
    with pytest.raises(RealignError, match=r"there is no latent (64|-1): the SAE has the latents 0 to 63"):
        sae.MonitoredLatents(small_sae.make("standard"), latents)


def test_an_sae_of_another_depth_of_a_model(tmp_path: Path) -> None:
    deep = checkpoints.open(tiny.make("gpt2", tmp_path, layers=4))
    made = small_sae.make("standard", metadata={"hook_name": "blocks.3.hook_resid_post"})
    assert sae.layer_read(made, deep, "x") == 3
