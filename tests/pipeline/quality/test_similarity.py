"""Numbers from CLIP and DINO, with tiny random models: they are cosines of what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel as TransformersClip
from transformers import CLIPProcessor

from pipeline.quality.similarity import ClipModel, ImageModel, WrongModel
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
    measured = ClipModel.load(clip).measure(clips, prompt)
    expected = (out.image_embeds @ out.text_embeds[0]).mean().item()
    assert measured["clip_text"] == pytest.approx(expected, abs=1e-5)
    pairs = out.image_embeds @ out.image_embeds.T
    apart = pairs[~torch.eye(5, dtype=torch.bool)].mean().item()
    assert measured["clip_frames"] == pytest.approx(apart, abs=1e-5)


def test_a_still_clip_agrees_with_itself(clip: str) -> None:
    still = frames(1).expand(5, -1, -1, -1)
    measured = ClipModel.load(clip).measure(still, "a red star")
    assert measured["clip_frames"] == pytest.approx(1.0, abs=1e-5)
    assert ClipModel.load(clip).measure(still[:1], "a star")["clip_frames"] == 1.0


def test_a_prompt_longer_than_the_model_reads_is_cut(clip: str) -> None:
    model = ClipModel.load(clip)
    long = model.measure(frames(2), "a very long prompt about a red star " * 9)
    longer = model.measure(frames(2), "a very long prompt about a red star " * 10)
    assert long == longer


def test_the_number_of_frames_at_once_changes_nothing(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ClipModel.load(clip)
    whole = model.measure(frames(7), "a star")
    monkeypatch.setattr("pipeline.quality.similarity.FRAMES_AT_ONCE", 2)
    assert model.measure(frames(7), "a star") == pytest.approx(whole, abs=1e-5)


def test_a_source_agrees_with_itself_and_less_with_another(dino: str) -> None:
    model = ImageModel.load(dino)
    same = model.measure(frames(5), frames(5))["dino_source"]
    assert same == pytest.approx(1.0, abs=1e-5)
    assert model.measure(frames(5), frames(5, seed=1))["dino_source"] < same
    assert model.measure(frames(5), frames(9))["dino_source"] == pytest.approx(1.0, abs=1e-5)


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
