"""What a caller may give to the `Editor`: names of settings, and prompts."""

from typing import Any

import numpy as np
import pytest

from pipeline.inputs import as_specs, with_changes
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction


@pytest.mark.parametrize(
    ("settings", "name", "meant"),
    [
        (Inversion(), "num_inference_steps", "did you mean 'steps'?"),
        (Inversion(), "step", "did you mean 'steps'?"),
        (Inversion(), "guidance_scale", "`Editor.reconstruct(..., guidance_scale=...)` takes"),
        (Inversion(), "height", "`Editor.read(..., VideoSettings(height=...))` takes 'height'"),
        (Inversion(), "num_frames", "`Editor.read(..., VideoSettings(frames=...))` takes 'frames'"),
        (Inversion(), "generator", "give `seed=...`"),
        (
            Inversion(),
            "torch_dtype",
            "`Editor.from_pretrained(..., torch_dtype=...)` takes the dtype",
        ),
        (Inversion(), "skip_frames_start", "`Editor.read(..., start_frame=...)` takes it"),
        (Inversion(), "video_path", "`Editor.invert(path)` takes the video"),
        (Reconstruction(), "num_inference_steps", "`Editor.invert(..., steps=...)` takes 'steps'"),
        (Reconstruction(), "steps", "`Editor.invert(..., steps=...)` takes 'steps'"),
        (Reconstruction(), "strength", "did you mean 'start'?"),
        (Reconstruction(), "use_dynamic_cfg", "did you mean 'dynamic_guidance'?"),
        (Reconstruction(), "guidence_scale", "did you mean 'guidance_scale'?"),
        (Reconstruction(), "prompt", "`Editor.reconstruct(trajectory, prompts)` takes the prompts"),
        (
            Reconstruction(),
            "num_videos_per_prompt",
            "for more, repeat the prompt, with another seed",
        ),
        (Reconstruction(), "zzz", "known are start, noise, guidance_scale, negative_prompt"),
    ],
)
def test_a_name_that_is_no_setting_leads_to_what_was_meant(
    settings: Any, name: str, meant: str
) -> None:
    with pytest.raises(TypeError) as caught:
        with_changes(settings, {name: 1}, type(settings))
    assert str(caught.value).startswith(f"{type(settings).__name__} has no setting {name!r}; ")
    assert meant in str(caught.value)


def test_a_dict_in_the_place_of_settings_is_refused() -> None:
    settings: Any = {"steps": 25}
    with pytest.raises(
        TypeError, match="settings are a dict; expected Inversion: give .* steps=25"
    ):
        with_changes(settings, {}, Inversion)


@pytest.mark.parametrize(
    "prompts",
    ["a fox", EditSpec("a fox"), ["a fox"], ("a fox",), iter(["a fox"]), np.array(["a fox"])],
)
def test_one_prompt_is_one_edit_in_whatever_form(prompts: Any) -> None:
    assert as_specs(prompts) == [EditSpec("a fox")]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts"),
        ({"a": "a fox"}, "prompts are a dict; expected a prompt, or a list of prompts"),
        ({"a fox", "a cat"}, "prompts are a set; expected a prompt, or a list of prompts"),
        (b"a fox", "prompts are a bytes; expected a prompt"),
        ([["a fox"]], r"a prompt is \['a fox'\]; expected a text or an EditSpec"),
        (" ", "a prompt is empty"),
        (EditSpec(["a", "b"]), r"an edit's prompt is \['a', 'b'\]; expected a text that is not em"),  # type: ignore[arg-type]
        (EditSpec("a", 4.0), "an edit's negative_prompt is 4; expected a text, or null; put it in"),  # type: ignore[arg-type]
        (EditSpec("a", None, -1), "an edit's guidance_scale is -1; expected a number, 0 or more"),
        (EditSpec("a", seed=0.5), "an edit's seed is 0.5; expected a whole number, 0 or more"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_prompt_is_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_specs(prompts)
