"""`retake edit`: one video edited as a job would, in one process and without Ray."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster.ranks.channel import whole
from cluster.ranks.edit_video import edit_video
from cluster.ranks.editing import RankEditor, prompt_store
from cluster.ranks.invert_video import invert_video
from cluster.rows import check_row
from jobs.cli import app
from jobs.errors import WrongOption
from jobs.one_video.options import (
    SETTINGS_OF_AN_EDIT,
    described,
    settings_from,
    values_from,
    with_option_names,
)
from jobs.one_video.request import slug, targets_of
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.text_encoder import encode_prompt
from pipeline.records import EditSpec, VideoSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, VideoSettings
from tests.drawn_videos import draw, draw_sound, waves

SMALL = ("--height", "32", "--width", "48", "--frames", "9", "--steps", "4", "--no-vae-psnr")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a clip in it, where the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "horse.mp4").write_bytes(draw(list(waves(10, 40, 60))))
    return tmp_path


@pytest.fixture
def edit(folder: Path, checkpoints: dict[str, Path]) -> Callable[..., tuple[int, str, str]]:
    """`retake edit horse.mp4` with a small checkpoint: its status, stdout and stderr."""

    def run(*arguments: str, video: str = "horse.mp4") -> tuple[int, str, str]:
        options = ["--checkpoint", str(checkpoints["5b"]), *SMALL, *arguments]
        done = CliRunner().invoke(app, ["edit", video, *options])
        return done.exit_code, done.stdout, done.stderr

    return run


def job_of(
    folder: Path, checkpoint: Path, mask: str | None = None, **reconstruction: object
) -> dict[str, bytes]:
    """The edits that a job's rank makes of the same clip and settings, by prompt."""
    settings = EditingSettings(
        output=str(folder / "out"),
        checkpoint=str(checkpoint),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=4, vae_psnr=False, posterior="sample"),
        reconstruction=Reconstruction(**reconstruction),  # type: ignore[arg-type]
    )
    edits = [{"prompt": "a zebra gallops"}, {"prompt": "a donkey"}]
    video = check_row({"video": "horse.mp4", "mask": mask, "edits": edits}).video
    info = open_checkpoint(settings.checkpoint)
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    for prompt in ("", *(edit["prompt"] for edit in edits)):
        embedding = encode_prompt(tokenizer, encoder, prompt, info.text_tokens)
        prompt_store(settings, info).write(prompt, embedding)
    rank = RankEditor.load(settings, torch.device("cpu"))
    made = whole(edit_video(rank, video, invert_video(rank, video)), rank.overlap.begun())
    files = [folder / "out" / str(result.output) for result in made]
    return {e["prompt"]: file.read_bytes() for e, file in zip(edits, files, strict=True)}


def test_the_edits_are_those_of_a_job_byte_for_byte(
    edit: Callable[..., tuple[int, str, str]], folder: Path, checkpoints: dict[str, Path]
) -> None:
    prompts = ("a zebra gallops", "a donkey")
    status, out, err = edit(*prompts, "--start", "noise", "--posterior", "sample", "-o", "mine/")
    assert status == 0, err
    files = [folder / "mine/a-zebra-gallops.mp4", folder / "mine/a-donkey.mp4"]
    theirs = job_of(folder, checkpoints["5b"], start="noise")
    assert {p: f.read_bytes() for p, f in zip(prompts, files, strict=True)} == theirs
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "mine/a-zebra-gallops.mp4",
        "mine/a-donkey.mp4",
    ]
    assert err.startswith("editing horse.mp4 with 2 prompts\nloading ")
    assert "9 frames of 48x32 at 8 fps, in torch.float32 on cpu\n" in err


def test_a_trajectory_that_was_stored_gives_the_same_edit(
    edit: Callable[..., tuple[int, str, str]], folder: Path, checkpoints: dict[str, Path]
) -> None:
    status, _, err = edit("a zebra", "-o", "first.mp4", "--keep-trajectory", "horse.trajectory")
    assert status == 0, err
    assert "inverted 2 of 4 levels in " in err
    options = ["--checkpoint", str(checkpoints["5b"]), *SMALL[:6]]
    options += ["--trajectory", "horse.trajectory", "-o", "deep/second.mp4"]
    done = CliRunner().invoke(app, ["edit", "horse.mp4", "a zebra", *options])
    assert done.exit_code == 0, done.stderr
    assert "inverted" not in done.stderr
    assert (folder / "deep/second.mp4").read_bytes() == (folder / "first.mp4").read_bytes()


def test_a_trajectory_of_another_checkpoint_is_refused(
    edit: Callable[..., tuple[int, str, str]], checkpoints: dict[str, Path]
) -> None:
    assert edit("a zebra", "--keep-trajectory", "t")[0] == 0
    command = ["edit", "horse.mp4", "x", "--trajectory", "t", *SMALL[:6]]
    done = CliRunner().invoke(app, [*command, "--checkpoint", str(checkpoints["2b"])])
    assert done.exit_code == 1
    assert "--trajectory t was made with another checkpoint than" in done.stderr


@pytest.mark.parametrize(
    ("frames", "options", "complaint"),
    [
        (3, [], "is of another clip than other.mp4"),
        (10, ["--frames", "5"], "is of another clip than other.mp4"),
        (10, ["--start", "inverted"], "reaches level 2 of 4, and these settings need level 4"),
    ],
)
def test_a_trajectory_of_another_clip_or_one_too_short_is_refused(
    folder: Path,
    checkpoints: dict[str, Path],
    edit: Callable[..., tuple[int, str, str]],
    frames: int,
    options: list[str],
    complaint: str,
) -> None:
    assert edit("a zebra", "-o", "first.mp4", "--keep-trajectory", "t")[0] == 0
    pictures = waves(10, 40, 60) if frames == 10 else 255 - waves(10, 40, 60)
    (folder / "other.mp4").write_bytes(draw(list(pictures)))
    size = ["--height", "32", "--width", "48", "--frames", "9", *options]
    command = ["edit", "other.mp4", "x", "--trajectory", "t", "--checkpoint"]
    done = CliRunner().invoke(app, [*command, str(checkpoints["5b"]), *size])
    assert done.exit_code == 1
    assert complaint in done.stderr


def test_it_refuses_what_it_may_not_write_before_the_checkpoint_is_opened(folder: Path) -> None:
    (folder / "there.mp4").write_bytes(b"mine")
    (folder / "file").write_text("in the way")
    (folder / "folder.mp4").mkdir()
    cases = {
        "there.mp4": (2, "--output 'there.mp4' exists; give --overwrite to replace it"),
        "./horse.mp4": (2, "is the source itself, which is never replaced"),
        "horse.avi": (2, "edits are MP4 files; end its name in .mp4"),
        "zebra": (2, "end it in .mp4 for a file, or in / for a folder"),
        "folder.mp4": (2, "is a folder"),
        "file/x.mp4": (1, "cannot be written"),
        "nosuch://x.mp4": (1, "has the unknown protocol 'nosuch'"),
    }
    before = (folder / "horse.mp4").read_bytes()
    for output, (status, complaint) in cases.items():
        overwrite = ["--overwrite"] if "horse" in output else []
        command = ["edit", "horse.mp4", "x", "-o", output, "--checkpoint", "/nowhere", *overwrite]
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, complaint in done.stderr) == (status, True), done.stderr
        assert "loading" not in done.stderr
    assert (folder / "there.mp4").read_bytes() == b"mine"
    assert (folder / "horse.mp4").read_bytes() == before


def test_folders_of_trajectories_are_looked_at_before_the_checkpoint(folder: Path) -> None:
    (folder / "t").mkdir()
    (folder / "t/mine").write_text("x")
    for option, status, complaint in (
        ("--keep-trajectory", 2, "--keep-trajectory t: there are files already"),
        ("--trajectory", 1, "--trajectory t: no trajectory is stored there"),
    ):
        command = ["edit", "horse.mp4", "x", option, "t", "--checkpoint", "/nowhere"]
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, complaint in done.stderr) == (status, True), done.stderr
        assert "loading" not in done.stderr


def test_it_replaces_a_file_where_it_is_asked_to(
    edit: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    (folder / "there.mp4").write_bytes(b"mine")
    status, _, err = edit("a zebra", "-o", "there.mp4", "--overwrite")
    assert status == 0, err
    assert (folder / "there.mp4").read_bytes()[4:8] == b"ftyp"
    assert sorted(path.name for path in folder.iterdir()) == ["horse.mp4", "there.mp4"]


def test_what_is_no_video_is_a_message_before_the_weights_are_loaded(
    edit: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    (folder / "text.mp4").write_text("no video")
    (folder / "sound.mp4").write_bytes(draw_sound())
    (folder / "short.mp4").write_bytes(draw(list(waves(3, 40, 60))))
    cases = [
        ("nowhere.mp4", [], "nowhere.mp4: there is no such file"),
        (".", [], ".: is a folder; expected a file"),
        ("*.mp4", [], "*.mp4: there is no such file; it is a pattern"),
        ("text.mp4", [], "text.mp4: not a video file"),
        ("sound.mp4", [], "sound.mp4: no video stream, only audio"),
        ("short.mp4", [], "short.mp4: "),
        ("horse.mp4", ["--start-frame", "8"], "horse.mp4: "),
        ("horse.mp4", ["--start-frame", "80"], "horse.mp4: "),
    ]
    for video, options, complaint in cases:
        status, _, err = edit("x", "-o", "o.mp4", *options, video=video)
        assert (status, f"error: {complaint}" in err, "loaded" in err) == (1, True, False), err
        assert not (folder / "o.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["  "], "prompt 1 is empty"),
        (["a", "--model-path", "m", "--checkpoint", "m"], "is another name of --checkpoint"),
        (["a", "b", "a"], "prompt 'a' was given twice"),
        (["a", "b", "-o", "one.mp4"], "is one file for 2 prompts; give a folder"),
        (["a", "--steps", "0"], "--steps is 0; expected a whole number from 1 to 1000"),
        (["a", "--steps", "many"], "--steps is 'many'; expected a whole number"),
        (
            ["a", "--guidance-scale", "200"],
            "--guidance-scale is 200; expected a number from 0 to 100",
        ),
        (
            ["a", "--guidance-scale", "nan"],
            "--guidance-scale is nan; expected a number from 0 to 100",
        ),
        (
            ["a", "--start", "1.5"],
            "--start is 1.5; expected noise or inverted, or a number above 0",
        ),
        (
            ["a", "--start", "top"],
            "--start is 'top'; expected noise or inverted, or a number above 0",
        ),
        (["a", "--guidance-steps", "0.5"], "--guidance-steps is '0.5'; expected two numbers"),
        (["a", "--guidance-steps", "0.5,0.1"], "--guidance-steps is [0.5, 0.1]: its first number"),
        (["a", "--fit", "squeeze"], "--fit is 'squeeze'; expected crop or pad"),
        (["a", "--precision", "int8"], "--precision is 'int8'; expected auto, fp32"),
        (["a", "--seed", "-1"], "--seed is -1; expected a whole number, 0 or more"),
        (["a", "--start-frame", "-1"], "--start-frame is -1; expected a whole number"),
        (["a", "--num-frames", "0"], "--num-frames is 0; expected a whole number, 1 or more"),
        (["a", "--dynamic-guidance"], "--dynamic-guidance grows in the last steps"),
        (["a", "--steps", "5", "--num-inference-steps", "5"], "is another name of --steps"),
        (["a", "--trajectory", "t", "--method", "pec"], "--method does nothing with --trajectory"),
    ],
)
def test_a_value_that_a_setting_does_not_take_is_wrong_usage_and_names_the_option(
    folder: Path, arguments: list[str], complaint: str
) -> None:
    done = CliRunner().invoke(app, ["edit", "horse.mp4", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") or "one.mp4" in arguments
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_or_a_device_that_cannot_be_had_is_a_message(
    edit: Callable[..., tuple[int, str, str]],
) -> None:
    for options, complaint in (
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--device", "tpu"], "device is 'tpu'; expected 'cpu'"),
        (["--inject-blocks", "0,99"], "--inject-blocks is [0, 99]"),
        (["--device", "cpu", "--attention", "flash"], "error: --attention is flash"),
    ):
        status, _, err = edit("x", *options)
        assert (status, complaint in err, "Traceback" in err) == (1, True, False), err


def test_what_the_engine_says_of_a_job_names_the_options_of_the_command() -> None:
    text = "set video.height, reconstruction.edits_at_once or speed.weights; video.mp4 stays"
    assert with_option_names(text) == "set --height, --edits-at-once or --weights; video.mp4 stays"


def test_memory_that_is_too_small_is_a_message(
    edit: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.model.memory.DeviceMemory.free", lambda _: 0)
    status, _, err = edit("a red fox")
    assert status == 1
    assert re.search("error: .*: the weights take 0.0 GB, and 0.0 GB of .* are free on cpu", err)


def test_options_have_the_values_that_settings_have() -> None:
    options = {
        "start": "0.5",
        "guidance_steps": "[0, 1]",
        "inject_blocks": "2 5",
        "residual": True,
        "reference": "null",
        "edits_at_once": "2",
    }
    assert settings_from(Reconstruction, options) == Reconstruction(
        start=0.5,
        guidance_steps=(0.0, 1.0),
        inject_blocks=(2, 5),
        residual=True,
        edits_at_once=2,
    )
    assert settings_from(VideoSettings, {"fps": "12.5", "fit": None}) == VideoSettings(fps=12.5)
    assert values_from(VideoSpec, {"start_frame": "3", "source_prompt": "a"}) == {
        "start_frame": 3,
        "source_prompt": "a",
    }
    with pytest.raises(WrongOption, match="--iterations is '1.5'; expected a whole number"):
        settings_from(Inversion, {"iterations": "1.5"})


def test_every_option_has_the_text_of_its_declaration() -> None:
    help_ = CliRunner().invoke(app, ["edit", "-h"], env={"COLUMNS": "1000"}).output
    for kind, names in SETTINGS_OF_AN_EDIT.items():
        texts = described(kind)
        for name in names or kind.__dataclass_fields__:
            assert f"--{name.replace('_', '-')} " in help_
            assert texts[name] in help_, name
    assert "[default: 0,0.4]" in help_
    assert "--num-inference-steps" not in help_, "another name, for those who try it"


def test_what_only_a_job_does_is_no_option() -> None:
    for option in ("--candidates", "--keep-candidates", "--until-accepted"):
        done = CliRunner().invoke(app, ["edit", "horse.mp4", "x", option, "2"])
        assert done.exit_code == 2
        assert "No such option" in done.stderr


def test_a_mask_that_cannot_be_found_from_noise_is_wrong_usage(folder: Path) -> None:
    given = ["--mask", "auto", "--start", "noise"]
    done = CliRunner().invoke(app, ["edit", "horse.mp4", "x", *given])
    assert done.exit_code == 2
    assert "--start is noise" in done.stderr


def test_a_composite_is_that_of_a_job_byte_for_byte(
    edit: Callable[..., tuple[int, str, str]], folder: Path, checkpoints: dict[str, Path]
) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :20] = 255
    (folder / "mask.png").write_bytes(
        draw([picture], container="image2pipe", codec="png", pix_fmt="rgb24")
    )
    how = ("--composite", "--mask", "mask.png", "--posterior", "sample")
    status, _, err = edit("a donkey", *how, "-o", "mine.mp4")
    assert status == 0, err
    theirs = job_of(folder, checkpoints["5b"], mask="mask.png", composite=True)
    assert (folder / "mine.mp4").read_bytes() == theirs["a donkey"]


def test_names_of_diffusers_and_of_the_script_are_understood(
    edit: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = edit("x", "-o", "o.mp4", "--guidance_scale", "3", "--max_num_frames", "5")
    assert status == 0, err
    assert "5 frames of 48x32" in err
    done = CliRunner().invoke(app, ["edit", "horse.mp4", "x", "--num_inference_steps", "0"])
    assert "--steps is 0" in done.stderr


@pytest.mark.parametrize(
    ("prompts", "output", "expected"),
    [
        (["A zebra, gallops!"], None, ["horse-a-zebra-gallops.mp4"]),
        (["a", "b"], None, ["horse-a.mp4", "horse-b.mp4"]),
        (["a"], "o/", ["o/a.mp4"]),
        (["a", "b"], "o", ["o/a.mp4", "o/b.mp4"]),
        (["a", "b"], "s3://bucket/o/", ["s3://bucket/o/a.mp4", "s3://bucket/o/b.mp4"]),
        (["a", "b"], "o/{video}.{n}.mp4", ["o/horse.1.mp4", "o/horse.2.mp4"]),
        (["a {n}", "b"], "{prompt}.MP4", ["a-n.MP4", "b.MP4"]),
        (["a!", "a?"], "o/", ["o/a.mp4", "o/a-2.mp4"]),
        (["!?"], "o/", ["o/edit.mp4"]),
    ],
)
def test_each_prompt_has_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str],
    output: str | None,
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    edits = tuple(EditSpec(prompt) for prompt in prompts)
    assert targets_of(VideoSpec("horse.mp4", "horse-12345678", edits=edits), output) == expected


def test_a_long_prompt_has_a_name_that_a_file_may_have() -> None:
    assert len(slug("ü" * 300).encode()) <= 80


def test_ctrl_c_is_status_130(
    edit: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.editor.Editor.invert", stop)
    status, _, err = edit("x")
    assert status == 130
    assert "stopped" in err


def test_it_says_what_it_does_before_torch_and_never_imports_ray(folder: Path) -> None:
    program = """
import json, sys
seen = []
class Watched:
    def write(self, text):
        if text.strip():
            seen.append("torch" in sys.modules)
    def flush(self): pass
    def isatty(self): return False
sys.stderr = Watched()
from jobs.cli import app
try:
    app(sys.argv[1:])
except SystemExit as error:
    print(json.dumps([error.code, seen[0], "ray" in sys.modules]))
"""
    options = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "2"]
    command = [sys.executable, "-c", program, "edit", "horse.mp4", "a red ring", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False, False]
    assert (folder / "horse-a-red-ring.mp4").exists()
