"""Numbers from CLIP and DINO, with tiny random models: they are cosines of what the models say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessor, CLIPProcessor, Dinov2Model
from transformers import CLIPModel as TransformersClip

from pipeline.quality.fingerprints import WrongModel, hub_commit, model_fingerprint
from pipeline.quality.similarity import ClipModel, ImageModel
from tests.small_similarity_models import save_clip, save_dino


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_dino(tmp_path_factory.mktemp("dino"))


def frames(count: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 48, 64, 3), dtype=torch.uint8, generator=drawn)


def test_agreement_with_the_prompt_is_the_cosine_that_transformers_computes(clip: str) -> None:
    prompt, clips = "a red star", frames(5)
    model, processor = TransformersClip.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=[prompt], images=list(clips.numpy()), return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    measured = ClipModel.load(clip).score(clips, clips, prompt, None)
    expected = (out.image_embeds @ out.text_embeds[0]).mean().item()
    assert measured["text"] == pytest.approx(expected, abs=1e-5)
    pairs = out.image_embeds @ out.image_embeds.T
    apart = pairs[~torch.eye(5, dtype=torch.bool)].mean().item()
    assert measured["frames"] == pytest.approx(apart, abs=1e-5)


def test_a_still_clip_agrees_with_itself(clip: str) -> None:
    still = frames(1).expand(5, -1, -1, -1)
    measured = ClipModel.load(clip).score(still, still, "a red star", None)
    assert measured["frames"] == pytest.approx(1.0, abs=1e-5)
    assert ClipModel.load(clip).score(still, still[:1], "a star", None)["frames"] == 1.0


def test_a_prompt_longer_than_the_model_reads_is_cut(clip: str) -> None:
    model = ClipModel.load(clip)
    long, longer = (
        model.score(frames(2), frames(2), "a very long prompt about a red star " * times, None)
        for times in (9, 10)
    )
    assert long == longer


def test_the_number_of_frames_at_once_changes_nothing(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ClipModel.load(clip)
    whole = model.score(frames(7, seed=1), frames(7), "a star", "a square")
    monkeypatch.setattr("pipeline.quality.similarity.FRAMES_AT_ONCE", 2)
    parts = model.score(frames(7, seed=1), frames(7), "a star", "a square")
    assert parts == pytest.approx(whole, abs=1e-5)


def test_direction_is_the_cosine_of_the_two_changes(clip: str) -> None:
    source, edit = frames(3), frames(3, seed=1)
    prompts = ["a blue square", "a red star"]
    model, processor = TransformersClip.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    inputs = processor(
        text=prompts, images=[*source.numpy(), *edit.numpy()], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        out = model(**inputs)
    change = out.image_embeds[3:].mean(0) - out.image_embeds[:3].mean(0)
    asked = out.text_embeds[1] - out.text_embeds[0]
    expected = torch.nn.functional.cosine_similarity(change, asked, dim=0).item()
    measured = ClipModel.load(clip).score(source, edit, prompts[1], prompts[0])
    assert measured["direction"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 0.01


def test_direction_needs_two_prompts_and_is_nought_where_nothing_changed(clip: str) -> None:
    model = ClipModel.load(clip)
    assert model.score(frames(2), frames(2), "a star", None)["direction"] is None
    assert model.score(frames(2), frames(2), "a star", "a star")["direction"] is None
    assert model.score(frames(2), frames(2), "a star", "a square")["direction"] == 0.0


def test_a_source_agrees_with_itself_and_less_with_another(dino: str) -> None:
    model = ImageModel.load(dino)
    same = model.score(frames(5), frames(5))
    assert same == pytest.approx({"source": 1.0, "structure": 0.0}, abs=1e-5)
    other = model.score(frames(5), frames(5, seed=1))
    assert other["source"] < same["source"]
    assert other["structure"] > 0.01
    assert model.score(frames(5), frames(9)) == pytest.approx(same, abs=1e-5)


def test_structure_is_the_distance_of_the_cosines_between_patches(dino: str) -> None:
    source, edit = frames(2), frames(2, seed=1)
    model, processor = Dinov2Model.from_pretrained(dino), BitImageProcessor.from_pretrained(dino)

    def cosines(clip: torch.Tensor) -> torch.Tensor:
        pixels = processor(list(clip.numpy()), return_tensors="pt")
        with torch.no_grad():
            patches = model(**pixels).last_hidden_state[:, 1:]
        return torch.nn.functional.cosine_similarity(patches[:, None], patches[:, :, None], dim=-1)

    apart = (cosines(source) - cosines(edit)).flatten(1).norm(dim=1) / 16  # 4x4 patches
    measured = ImageModel.load(dino).score(source, edit)["structure"]
    assert measured == pytest.approx(apart.mean().item(), abs=1e-5)


@pytest.mark.parametrize(("kind", "other"), [(ClipModel, "dino"), (ImageModel, "clip")])
def test_a_model_of_another_kind_is_named_in_the_error(
    kind: type[ClipModel], other: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(other)
    with pytest.raises(WrongModel, match=f"{folder}: a model of type {other}"):
        kind.load(folder)


def test_a_folder_without_a_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(WrongModel, match=f"{tmp_path}: not a model that transformers can open"):
        ClipModel.load(str(tmp_path))


def test_a_name_that_the_hub_does_not_give_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WrongModel, match="no-one/no-model: not a model that transformers can open"):
        ClipModel.load("no-one/no-model")


def test_a_model_on_the_hub_is_named_by_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some-one--a-clip"
    names = set()
    for commit in ("a" * 40, "b" * 40):
        save_clip(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        names.add(model_fingerprint("some-one/a-clip"))
        assert hub_commit("some-one/a-clip") == commit
    assert len(names) == 2


def test_a_fingerprint_is_of_what_a_folder_holds_and_not_of_its_place(
    clip: str, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(clip, copy)
    save_clip(other, seed=1)
    assert model_fingerprint(str(copy)) == model_fingerprint(clip) != model_fingerprint(str(other))
    (copy / "preprocessor_config.json").write_text("{}")
    assert model_fingerprint(str(copy)) != model_fingerprint(clip)
