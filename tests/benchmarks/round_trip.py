"""What inverting a clip and coming back costs in pixels, beside what the VAE alone costs.

    python -m tests.benchmarks.round_trip [--clips 48] [--checkpoint FOLDER]

Held-out drawn clips are inverted with the empty prompt and walked down again with it, without
guidance and without a reference, so whatever is lost was lost by the inversion. The table is
printed and written to `round_trip.md` beside this file. Takes about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.demo import world
from pipeline import Editor, EditSpec, Inversion, Reconstruction
from pipeline.model.vae import to_uint8
from pipeline.quality.metrics import psnr_db
from tests.benchmarks.edits import SEED, STEPS

METHODS = ("pec", "fixed_point", "ddim", "script")
STARTS = (0.6, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--checkpoint", default="embedded", help="a folder in diffusers format")
    arguments = parser.parse_args()
    editor = Editor.from_pretrained(arguments.checkpoint, device="cpu")
    rng = np.random.default_rng(SEED)
    clips = [torch.from_numpy(world.draw(world.random_scene(rng))) for _ in range(arguments.clips)]
    known_as = "embedded" if arguments.checkpoint == "embedded" else Path(arguments.checkpoint).name
    report = table(editor, clips, known_as)
    print(report)
    Path(__file__).with_suffix(".md").write_text(report)


def table(editor: Editor, clips: list[Tensor], checkpoint: str) -> str:
    ceiling = mean_psnr_db(clips, [vae_alone(editor, clip) for clip in clips])
    lines = [
        "# The round trip of drawn clips, in pixels",
        "",
        f"{datetime.date.today()}; checkpoint: {checkpoint}; {len(clips)} held-out clips, {STEPS} "
        f"steps, empty prompt, float32, {platform.machine()} CPU. Mean PSNR in dB against the "
        f"source. **The VAE alone: {ceiling:.2f} dB.** Written by "
        "`python -m tests.benchmarks.round_trip`.",
        "",
        "| method | " + " | ".join(f"to {start:.0%} of the levels" for start in STARTS) + " |",
        "|---|" + "---|" * len(STARTS),
    ]
    for method in METHODS:
        found = [
            mean_psnr_db(clips, [there_and_back(editor, clip, method, start) for clip in clips])
            for start in STARTS
        ]
        lines.append(f"| {method} | " + " | ".join(f"{psnr:.2f}" for psnr in found) + " |")
    return "\n".join(lines) + "\n"


def vae_alone(editor: Editor, clip: Tensor) -> Tensor:
    """A clip [F, H, W, 3] encoded and decoded, both uint8."""
    return to_uint8(editor.codec.decode(editor.codec.encode(clip), len(clip)))


def there_and_back(editor: Editor, clip: Tensor, method: str, start: float) -> Tensor:
    """A clip [F, H, W, 3] inverted up to a fraction of the levels and brought back, both uint8."""
    inversion = Inversion(STEPS, method)  # type: ignore[arg-type]
    trajectory = editor.invert(clip, inversion, highest=start)
    settings = Reconstruction(start=start, guidance_scale=1, reference="none")
    # Not `reconstruct`: an edit needs a prompt, and this is none.
    nothing = settings.filled(EditSpec(""), seed=0)
    latents = editor.denoise(trajectory, [nothing], settings).latents[0]
    return to_uint8(editor.decode(latents, len(clip)))


def mean_psnr_db(clips: list[Tensor], others: list[Tensor]) -> float:
    pairs = zip(clips, others, strict=True)
    return float(np.mean([psnr_db(clip / 255, other / 255) for clip, other in pairs]))


if __name__ == "__main__":
    main()
