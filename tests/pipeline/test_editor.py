"""The Python API: one video in a notebook, with diffusers' habits; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import Editor, EditSpec, Inversion, Reconstruction, Trajectory, VideoSettings
from pipeline.errors import ErrorCode, RowError
from pipeline.media.encoding import write_clip
from pipeline.model.transformer import ForwardCounter
from pipeline.settings import Speed
from tests.drawn_videos import waves
from tests.stand_in_t5 import T5

STEPS = 2
CLIP = torch.zeros(9, 32, 48, 3, dtype=torch.uint8)


@pytest.fixture(scope="module")
def editor(checkpoints: dict[str, Path]) -> Editor:
    editor = Editor.from_pretrained(str(checkpoints["5b"]), device="cpu")
    editor.set_progress_bar_config(disable=True)
    return editor


@pytest.fixture(scope="module")
def trajectory(editor: Editor) -> Trajectory:
    return editor.invert(CLIP, Inversion(steps=STEPS))


# Loading


def test_a_dtype_that_the_models_do_not_run_in_is_refused_with_those_that_they_do(
    checkpoints: dict[str, Path],
) -> None:
    for dtype in (torch.float64, "fp8"):
        with pytest.raises(
            ValueError, match=r"torch_dtype is .*; expected torch.float32, .*'auto'"
        ):
            Editor.from_pretrained(str(checkpoints["5b"]), torch_dtype=dtype, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_reported_before_anything_is_loaded(editor: Editor) -> None:
    with pytest.raises(ValueError, match="device is 'cuda', but .*device='cpu'"):
        Editor.from_pretrained("no such checkpoint", device="cuda")
    for move in (editor.to, editor.enable_model_cpu_offload):
        with pytest.raises(ValueError, match="device is 'cuda', but"):
            move("cuda")
    assert editor.to("cpu") is editor


def test_an_editor_and_a_trajectory_show_themselves_in_one_line(
    editor: Editor, trajectory: Trajectory
) -> None:
    assert repr(editor).startswith("Editor(CogVideoX 5b, ")
    assert repr(trajectory) == "Trajectory(9 frames at 8 fps, levels 0..2 of 2, method 'pec')"


# The text encoder


def test_an_editor_loads_no_text_encoder_before_a_prompt_needs_it(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    t5 = T5(monkeypatch)
    editor = Editor.from_pretrained(str(checkpoints["5b"]), device="cpu", torch_dtype="auto")
    assert t5.happened() == []
    editor.encode_prompts([""])
    assert t5.happened() == ["loaded in torch.float32 on cpu", "[0] on cpu"]


def test_all_prompts_of_a_call_are_encoded_together_before_the_first_edit(
    editor: Editor, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    text = replace(editor.text, encoded={})  # type: ignore[type-var]

    def noting(owner: Any, name: str, what: Callable[..., Any]) -> None:
        work = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (said.append(what(*args)), work(*args))[1])

    monkeypatch.setattr(editor, "text", text)
    noting(text, "encode", lambda texts, _: texts)
    noting(editor, "denoise", lambda _, some, *rest: len(some))
    noting(editor.codec, "decode", lambda *_: "decoded")
    prompts = [EditSpec("a"), EditSpec("b", negative_prompt="blur"), *"cde"]
    made = editor.reconstruct(
        trajectory, prompts, edits_at_once=2, reference="source", source_prompt="a horse"
    )
    assert len(made) == 5
    assert said[0] == ["", "a", "a horse", "b", "blur", "c", "d", "e"]
    worked = [one for one in said[1:] if isinstance(one, int | str)]
    assert worked == [2, "decoded", "decoded"] * 2 + [1, "decoded"]
    assert len(text.encoded) == 8


def test_an_edits_latents_hold_no_memory_of_the_others(
    editor: Editor, trajectory: Trajectory
) -> None:
    made = editor.reconstruct(trajectory, ["a", "b"], output_type="latent")
    for latents in made:
        assert latents.untyped_storage().nbytes() == latents.numel() * 4


def test_the_text_encoder_leaves_the_gpu_before_an_offloaded_model_comes(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    t5 = T5(monkeypatch)

    class Part:
        def to(self, device: Any) -> None:
            t5.said.append(f"model to {torch.device(device).type}")

    class Model:
        transformer = Part()

        def velocity(self, prompt: Any) -> None:
            assert prompt.embedding.device.type == "meta"

    def stop(*_: Any, **__: Any) -> Any:
        t5.said.append("climb")
        raise KeyboardInterrupt

    model, codec = Model(), type("Codec", (), {"vae": Part()})()
    offloaded = Editor(editor.info, model, codec, t5.encoder(torch.bfloat16))  # type: ignore[arg-type]
    offloaded.set_progress_bar_config(disable=True)
    monkeypatch.setattr("pipeline.inputs.usable_device", torch.device)
    monkeypatch.setattr("pipeline.editor.climb", stop)
    offloaded.enable_model_cpu_offload("meta")  # takes the place of a GPU
    t5.happened()
    with pytest.raises(KeyboardInterrupt):
        offloaded.extend(torch.zeros(1, 1), 0, editor.schedule(2, "pec"), Inversion(), 1)
    visit = ["loaded in torch.bfloat16 on cpu", "to meta", "[0] on meta", "to cpu"]
    assert t5.happened() == [*visit, "model to meta", "climb", "model to cpu"]


# Sources and prompts


def test_a_file_a_clip_an_array_and_a_tensor_are_inverted_alike(
    editor: Editor, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    with path.open("wb") as file:
        write_clip(file, torch.from_numpy(waves(9, 32, 48)), fps=5)
    video = VideoSettings(height=32, width=48)
    clip = editor.read(path, video)
    made = [
        editor.invert(source, steps=STEPS) for source in (clip, clip.frames, clip.frames.numpy())
    ]
    assert all(torch.equal(one.latents, made[0].latents) for one in made)
    assert made[0].fps == 5
    assert (made[0].schedule.steps, made[0].highest) == (STEPS, STEPS)
    with pytest.raises(RowError, match="there is no such file"):
        editor.invert(str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match="frames are an int; expected uint8"):
        editor.invert(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"num_frames": 0}, {"fps": 0}, {"start_frame": -1}])
def test_a_zero_is_not_taken_for_the_default(
    editor: Editor, tmp_path: Path, asked: dict[str, Any]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"never opened")
    with pytest.raises(RowError, match=f"{next(iter(asked))} is .*; expected") as refused:
        editor.read(tmp_path / "clip.mp4", **asked)
    assert refused.value.code == ErrorCode.BAD_VALUE


def test_a_single_string_is_one_prompt(editor: Editor, trajectory: Trajectory) -> None:
    one, in_a_list, spec = (
        editor.reconstruct(trajectory, given) for given in ("a fox", ["a fox"], EditSpec("a fox"))
    )
    assert len(one) == len(in_a_list) == len(spec) == 1
    assert torch.equal(one[0], in_a_list[0])
    assert torch.equal(one[0], spec[0])
    assert one[0].shape == CLIP.shape


@pytest.mark.parametrize(
    ("prompts", "said"),
    [([], "no prompts"), ([""], "a prompt is empty"), ([3], "a prompt is 3; expected a text")],
)
def test_what_is_no_prompt_is_refused(
    editor: Editor, trajectory: Trajectory, prompts: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        editor.reconstruct(trajectory, prompts)


def test_edits_beyond_those_at_once_are_made_all_the_same(
    editor: Editor, trajectory: Trajectory
) -> None:
    prompts = [f"a fox {i}" for i in range(3)]
    together = editor.reconstruct(trajectory, prompts, start="noise", edits_at_once=3)
    in_turn = editor.reconstruct(trajectory, prompts, start="noise", edits_at_once=2)
    assert all(torch.equal(a, b) for a, b in zip(together, in_turn, strict=True))


def test_a_step_cache_skips_blocks_of_edits_and_never_of_an_inversion(
    checkpoints: dict[str, Path], trajectory: Trajectory
) -> None:
    speed = Speed(step_cache=1.0, step_cache_steps=(0, 1))
    editor = Editor.from_pretrained(str(checkpoints["5b"]), device="cpu", speed=speed)
    editor.set_progress_bar_config(disable=True)
    same = editor.invert(CLIP, Inversion(steps=STEPS))
    assert torch.equal(same.latents, trajectory.latents)
    assert editor.model.forwards.skipped == 0
    how = Reconstruction(start="inverted", guidance_steps=(0, 1), edits_at_once=1)
    for _ in range(2):  # nothing is kept from one edit to the next
        editor.model.forwards = ForwardCounter()
        editor.reconstruct(trajectory, ["a fox", "a hare"], how)
        assert editor.model.forwards == ForwardCounter(plain=2, injected=4, skipped=6)


def test_what_an_edit_leaves_open_is_as_the_settings_say(
    editor: Editor, trajectory: Trajectory
) -> None:
    settings = Reconstruction(
        start="noise", guidance_scale=5.0, negative_prompt="blur", guidance_steps=(0, 1)
    )
    spec = EditSpec("a fox", negative_prompt="blur", guidance_scale=5.0)
    other = EditSpec("a fox", negative_prompt="blur", guidance_scale=1.0)
    bare, full, weak = (
        editor.reconstruct(trajectory, one, settings, output_type="latent")[0]
        for one in (EditSpec("a fox"), spec, other)
    )
    assert torch.equal(bare, full)
    assert not torch.equal(bare, weak)


def test_settings_may_be_given_by_name_and_an_unknown_one_is_met_with_the_nearest(
    editor: Editor, trajectory: Trajectory
) -> None:
    by_name = editor.reconstruct(trajectory, "a fox", start="inverted", output_type="latent")
    by_object = editor.reconstruct(
        trajectory, "a fox", Reconstruction(start="inverted"), output_type="latent"
    )
    assert torch.equal(by_name[0], by_object[0])
    with pytest.raises(TypeError, match="no setting 'guidance'; did you mean 'guidance_s"):
        editor.reconstruct(trajectory, "a fox", guidance=4)
    with pytest.raises(TypeError, match="Inversion has no setting 'step'; did you mean 'steps'"):
        editor.invert(CLIP, step=4)


def test_the_output_comes_in_four_forms(editor: Editor, trajectory: Trajectory) -> None:
    made = {
        kind: editor.reconstruct(trajectory, "a fox", output_type=kind)[0]  # type: ignore[arg-type]
        for kind in ("uint8", "np", "pil", "latent")
    }
    assert isinstance(made["np"], np.ndarray)
    assert np.array_equal(made["np"], made["uint8"].numpy())
    assert np.array_equal(np.stack([np.asarray(image) for image in made["pil"]]), made["np"])
    assert made["latent"].shape == trajectory.latents[0].shape
    with pytest.raises(ValueError, match="output_type is 'gif'; expected one of uint8, pil"):
        editor.reconstruct(trajectory, "a fox", output_type="gif")  # type: ignore[arg-type]


def test_a_callback_sees_every_step_and_may_change_the_latents(
    editor: Editor, trajectory: Trajectory
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(
        pipe: Editor, step: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert pipe is editor
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])}

    (made,) = editor.reconstruct(
        trajectory,
        "a fox",
        start="inverted",
        output_type="latent",
        callback_on_step_end=watch,
    )
    levels = trajectory.schedule.levels
    assert seen == [(0, levels[2].timestep), (1, levels[1].timestep)]
    assert not made.any()


def test_a_generator_takes_the_place_of_the_seed(editor: Editor, trajectory: Trajectory) -> None:
    def made(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        (latents,) = editor.reconstruct(
            trajectory, "a fox", start="noise", generator=generator, output_type="latent"
        )
        return latents

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edits_at_once": -1}, "edits_at_once is -1; expected a whole number from 1 to 64"),
        ({"guidance_scale": -5}, "guidance_scale is -5; expected a number from 0 to 100"),
        ({"inject_steps": (-3, 9)}, r"inject_steps is \[-3, 9\]; expected \[first, last\]"),
        ({"inject_blocks": (-3, 1)}, r"inject_blocks is \[-3, 1\]; expected \[first, last\]"),
        ({"start": 1.5}, "start is 1.5"),
        ({"reference": "nothing"}, "reference is 'nothing'; expected empty, shared"),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_as_in_a_job_file(
    editor: Editor, trajectory: Trajectory, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        editor.reconstruct(trajectory, "a fox", **changes)
    with pytest.raises(ValueError, match="iterations is 0; expected a whole number from 1"):
        editor.invert(CLIP, method="fixed_point", iterations=0)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cuda:99"])
def test_a_device_that_cannot_be_had_is_a_clear_error(editor: Editor, device: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        editor.to(device)


def test_a_list_of_generators_is_refused_with_the_way_out(
    editor: Editor, trajectory: Trajectory
) -> None:
    generators: Any = [torch.Generator()]
    with pytest.raises(ValueError, match=r"generator is a list; .* EditSpec\(prompt, seed"):
        editor.reconstruct(trajectory, "a fox", generator=generators)


def test_what_a_callback_returns_keeps_the_latents_dtype(
    editor: Editor, trajectory: Trajectory
) -> None:
    (made,) = editor.reconstruct(
        trajectory,
        "a fox",
        output_type="latent",
        callback_on_step_end=lambda *step: {"latents": step[3]["latents"].half()},
    )
    assert made.dtype == torch.float32


def test_frames_that_cannot_be_written_leave_no_file(editor: Editor, tmp_path: Path) -> None:
    pictures: Any = ["picture"]
    with pytest.raises(ValueError, match="frames are a list; expected uint8"):
        editor.write(tmp_path / "a.mp4", pictures, fps=8)
    assert not (tmp_path / "a.mp4").exists()


def test_an_array_that_is_read_only_is_inverted_without_a_warning(
    editor: Editor, recwarn: pytest.WarningsRecorder
) -> None:
    array = CLIP.numpy().copy()
    array.flags.writeable = False
    editor.invert(array, steps=STEPS, highest=0.5)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


# Trajectories


def test_a_saved_trajectory_gives_the_same_edits(
    editor: Editor, trajectory: Trajectory, tmp_path: Path
) -> None:
    folder = str(tmp_path / "clip.trajectory")
    trajectory.save(Path(folder), dtype="fp32")
    loaded = Trajectory.load(Path(folder))
    assert loaded.checkpoint == trajectory.checkpoint == editor.info.fingerprint
    assert repr(loaded) == repr(trajectory)
    for start in (0.5, "inverted", "noise"):
        before, after = (
            editor.reconstruct(one, "a fox", start=start)[0] for one in (trajectory, loaded)
        )
        assert torch.equal(before, after)


def test_a_folder_without_a_trajectory_and_another_checkpoints_are_refused(
    editor: Editor, checkpoints: dict[str, Path], trajectory: Trajectory, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no trajectory is stored there"):
        Trajectory.load(str(tmp_path))
    other = Editor.from_pretrained(str(checkpoints["2b"]), device="cpu")
    with pytest.raises(ValueError, match="inverted with another checkpoint than"):
        other.reconstruct(trajectory, "a fox")
    tuned = replace(trajectory, checkpoint="another one of the same family")
    with pytest.raises(ValueError, match="inverted with another checkpoint than"):
        editor.reconstruct(tuned, "a fox")
    low = editor.invert(CLIP, steps=STEPS, highest=0.5)
    with pytest.raises(ValueError, match="the trajectory reaches level 1"):
        editor.reconstruct(low, "a fox", start="inverted")


# Frames


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (CLIP.float() / 255, r"frames are float32 \[9, 32, 48, 3\]; expected uint8 \[F, H, W, 3\]"),
        (CLIP[0], r"frames are uint8 \[32, 48, 3\]; expected"),
        (CLIP[..., :1], r"frames are uint8 \[9, 32, 48, 1\]; expected"),
        (CLIP.permute(0, 3, 1, 2), r"frames are uint8 \[9, 3, 32, 48\]; expected"),
        (CLIP[[*range(9), 0]], r"is 10; the model takes 4k \+ 1, at least 5: cut it to frames\[:9"),
        (CLIP[:1], r"is 1; the model takes 4k \+ 1, at least 5: take a longer one"),
        (CLIP[:, :24], "height is 24; this checkpoint needs a multiple of 16"),
        (CLIP[:, :, :40], "width is 40; this checkpoint needs a multiple of 16"),
    ],
)
def test_a_clip_that_the_checkpoint_does_not_take_is_refused(
    editor: Editor, frames: Tensor, said: str
) -> None:
    before = editor.model.forwards.total
    with pytest.raises(ValueError, match=said):
        editor.invert(frames, Inversion(steps=STEPS))
    assert editor.model.forwards.total == before


# Blocks


def test_blocks_above_the_last_are_refused_before_they_cost_anything(
    editor: Editor, trajectory: Trajectory
) -> None:
    before = editor.model.forwards.total
    for window in ((0, 3), (2, 3), (40, 42)):
        with pytest.raises(ValueError, match=rf"\[{window[0]}, {window[1]}\]; .* has 2 layers"):
            editor.reconstruct(trajectory, ["a fox"], Reconstruction(inject_blocks=window))
    assert editor.model.forwards.total == before
    assert editor.reconstruct(trajectory, ["a fox"], Reconstruction(inject_blocks=(0, 2)))


# Values that are not finite


def test_an_inversion_that_is_not_finite_is_an_error(
    editor: Editor, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = with_one(trajectory.latents[0], torch.inf)
    monkeypatch.setattr(editor.codec, "encode", lambda *_: broken)
    with pytest.raises(RowError, match="the inversion gave values that are not finite") as found:
        editor.invert(CLIP, Inversion(steps=STEPS))
    assert found.value.code == ErrorCode.NOT_FINITE


@pytest.mark.parametrize("where", ["latents", "frames"])
def test_an_edit_that_is_not_finite_is_an_error_and_no_black_video(
    editor: Editor, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    latents, frames = trajectory.latents, CLIP / 255
    if where == "latents":
        latents = torch.stack([with_one(entry, torch.nan) for entry in latents])
    else:
        frames = with_one(frames, torch.nan)
    monkeypatch.setattr(editor.codec, "decode", lambda *_: frames)
    with pytest.raises(RowError, match="edit 'a fox': values that are not finite") as found:
        editor.reconstruct(Trajectory(latents, trajectory.schedule, len(CLIP)), ["a fox"])
    assert found.value.code == ErrorCode.NOT_FINITE


def with_one(x: Tensor, value: float) -> Tensor:
    """A copy with one value replaced."""
    x = x.clone()
    x.view(-1)[-1] = value
    return x
