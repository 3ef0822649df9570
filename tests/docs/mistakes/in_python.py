"""Mistakes that people make in Python, for docs/messages.md: what was done, and how to do it."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline import Editor
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction, VideoSettings
from pipeline.trajectories.trajectory import Trajectory
from tests.docs.mistakes.provoke import Mistakes, altered, clip, no_index, python, stored

IN_PYTHON: Mistakes = {
    f"`{what}`": lambda call=call: python(call)
    for what, call in (
        ("Editor.from_pretrained('x')", lambda e: Editor.from_pretrained("x")),
        (
            "from_pretrained(..., torch_dtype=torch.int8)",
            lambda e: Editor.from_pretrained("5b", torch_dtype=torch.int8),
        ),
        (
            "from_pretrained(..., device='mps')",
            lambda e: Editor.from_pretrained("5b", device="mps"),
        ),
        ("invert('none.mp4')", lambda e: e.invert("none.mp4")),
        ("invert(float frames)", lambda e: e.invert(torch.zeros(9, 32, 48, 3))),
        ("invert(10 frames)", lambda e: e.invert(clip(10))),
        ("invert(frames 33 high)", lambda e: e.invert(clip(height=33))),
        ("invert(None)", lambda e: e.invert(None)),
        (
            "invert(clip, num_inference_steps=3)",
            lambda e: e.invert(clip(), num_inference_steps=3),
        ),
        ("invert(clip, guidance_scale=3)", lambda e: e.invert(clip(), guidance_scale=3)),
        ("invert(clip, {'steps': 3})", lambda e: e.invert(clip(), {"steps": 3})),
        ("invert(clip, Reconstruction())", lambda e: e.invert(clip(), Reconstruction())),
        ("invert(clip, highest=50)", lambda e: e.invert(clip(), highest=50)),
        ("invert(clip, seed=-1)", lambda e: e.invert(clip(), seed=-1)),
        ("reconstruct('stored', 'a zebra')", lambda e: e.reconstruct("stored", "a")),
        ("reconstruct(trajectory, None)", lambda e: e.reconstruct(stored(), None)),
        ("reconstruct(trajectory, [])", lambda e: e.reconstruct(stored(), [])),
        ("reconstruct(trajectory, [3])", lambda e: e.reconstruct(stored(), [3])),
        (
            "reconstruct(trajectory, EditSpec('a', guidance_scale='x'))",
            lambda e: e.reconstruct(stored(), EditSpec("a", guidance_scale="x")),
        ),
        (
            "reconstruct(..., strength=0.4)",
            lambda e: e.reconstruct(stored(), "a", strength=0.4),
        ),
        (
            "reconstruct(..., num_videos_per_prompt=2)",
            lambda e: e.reconstruct(stored(), "a", num_videos_per_prompt=2),
        ),
        (
            "reconstruct(..., output_type='pt')",
            lambda e: e.reconstruct(stored(), "a", output_type="pt"),
        ),
        ("reconstruct(..., generator=3)", lambda e: e.reconstruct(stored(), "a", generator=3)),
        (
            "reconstruct(a trajectory up to 0.4, start=1.0)",
            lambda e: e.reconstruct(e.invert(clip(), steps=3, highest=0.4), "a", start=1.0),
        ),
        (
            "reconstruct(a trajectory of another checkpoint)",
            lambda e: e.reconstruct(replace(stored(), checkpoint="x"), "a"),
        ),
        (
            "reconstruct(an altered trajectory)",
            lambda e: e.reconstruct(altered(), "a", start=1.0),
        ),
        ("Trajectory.load('nothing')", lambda e: Trajectory.load("nothing")),
        ("Trajectory.load('horse.mp4')", lambda e: Trajectory.load("horse.mp4")),
        ("Trajectory.load(with a broken index)", lambda e: no_index()),
        ("write('o.gif', frames)", lambda e: e.write("o.gif", clip(), fps=8)),
        ("write(float frames)", lambda e: e.write("o.mp4", torch.zeros(9, 32, 48, 3), fps=8)),
        ("write(frames 33 high)", lambda e: e.write("o.mp4", clip(height=33), fps=8)),
        ("write(frames, fps=0)", lambda e: e.write("o.mp4", clip(), fps=0)),
        ("read('clips')", lambda e: e.read("clips")),
        ("read('horse.mp4', start_frame=-1)", lambda e: e.read("horse.mp4", start_frame=-1)),
        ("Inversion(steps=0)", lambda e: Inversion(steps=0)),
        ("Reconstruction(start=1.5)", lambda e: Reconstruction(start=1.5)),
        ("Reconstruction(inject_steps=(0.5,))", lambda e: Reconstruction(inject_steps=(0.5,))),
        ("VideoSettings(frames='x')", lambda e: VideoSettings(frames="x")),
    )
}
