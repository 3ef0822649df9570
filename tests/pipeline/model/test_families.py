"""A small model of each family from its folder to edited frames, as a notebook would do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from pipeline.algorithm.inversion import invert
from pipeline.model.checkpoint import load_text_encoder, load_transformer, load_vae, open_checkpoint
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.text_encoder import encode_prompt
from pipeline.model.vae import Codec, to_uint8
from pipeline.plan import highest_stored
from pipeline.settings import Reconstruction
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import scheduler, write_checkpoint, write_json

PROMPTS = ("", "a red cube", "a blue cube")


class Notebook:
    """Everything that one video needs, loaded from a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.info = open_checkpoint(str(folder))
        self.codec = Codec(
            load_vae(self.info, torch.float32, "cpu"), self.info.latent_frames_multiple
        )
        tokenizer, encoder = load_text_encoder(self.info, torch.float32, "cpu")
        self.model = NamedModel(
            load_transformer(self.info, torch.float32, "cpu"),
            {p: encode_prompt(tokenizer, encoder, p, self.info.text_tokens) for p in PROMPTS},
        )
        self.schedule = schedule_from_config(self.info.scheduler, 6)


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, height, width, 3), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize(("frames", "start"), [(5, "noise"), (9, "inverted"), (13, 0.5)])
def test_a_video_becomes_two_others_of_its_size(checkpoint: Path, frames: int, start: Any) -> None:
    notebook, source = Notebook(checkpoint), clip(frames, 48, 80)
    encoded = notebook.codec.encode(source)
    assert encoded.shape == notebook.info.latent_shape(frames, 48, 80)
    settings = Reconstruction(start=start, reference="shared")
    trajectory = invert(
        notebook.model.velocity(),
        encoded,
        notebook.schedule,
        highest=highest_stored(settings, notebook.schedule.steps),
    )
    edits = [Edit("a red cube"), Edit("a blue cube")]
    made = edit_with(
        notebook.model, lambda level: trajectory[level], edits, notebook.schedule, settings
    )
    red, blue = (to_uint8(notebook.codec.decode(x, frames)) for x in made.latents)
    assert red.shape == blue.shape == source.shape
    assert torch.isfinite(made.latents).all()
    assert not torch.equal(red, blue)


def test_a_checkpoint_with_the_dpm_scheduler_gives_the_same_trajectory(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "dpm", "5b")
    saved = {
        **CogVideoXDPMScheduler.from_config(scheduler("5b")).config,
        "_class_name": "CogVideoXDPMScheduler",
    }
    write_json(folder / "scheduler" / "scheduler_config.json", saved)
    dpm, ddim = Notebook(folder), Notebook(checkpoints["5b"])
    encoded = ddim.codec.encode(clip(9, 48, 80))
    trajectories = [invert(n.model.velocity(), encoded, n.schedule) for n in (dpm, ddim)]
    assert torch.equal(*trajectories)


def test_equal_calls_write_equal_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    again = write_checkpoint(tmp_path / "again", checkpoint.name)
    assert open_checkpoint(str(again)).fingerprint == open_checkpoint(str(checkpoint)).fingerprint
    other = write_checkpoint(tmp_path / "other", checkpoint.name, seed=1)
    assert open_checkpoint(str(other)).fingerprint != open_checkpoint(str(checkpoint)).fingerprint
