"""The end of the recipe: a plain diffusers folder in float16, with its model card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

from jobs.demo import world
from jobs.demo.training.plan import Plan
from jobs.demo.training.reference import SHAPES_FROM, SHAPES_TO
from jobs.demo.training.transformer import Denoiser, make_scheduler

LICENSE = "apache-2.0"


@dataclass(frozen=True)
class Provenance:
    """What the model card says of a run: its seed, how long it took and on what, what it measured.

    `edits` is a section in Markdown on how well the checkpoint edits, where that was measured.
    """

    seed: int
    minutes: float
    machine: str
    vae_psnr_db: float
    edits: str = ""


def export(
    output: Path, vae: AutoencoderKLCogVideoX, denoiser: Denoiser, plan: Plan, run: Provenance
) -> None:
    """Write the folder that `CogVideoXPipeline.from_pretrained(output)` opens."""
    # Processors of training are not part of a checkpoint, and casting is in place: work on copies.
    parts = (vae, denoiser.transformer, denoiser.text_encoder)
    copies = [type(part).from_config(part.config) for part in parts[:2]]
    copies.append(type(denoiser.text_encoder)(denoiser.text_encoder.config))
    for part, copy in zip(parts, copies, strict=True):
        copy.load_state_dict(part.state_dict())
    pipeline = CogVideoXPipeline(
        tokenizer=denoiser.tokenizer,
        text_encoder=copies[2].to(torch.float16),
        vae=copies[0].to(torch.float16),
        transformer=copies[1].to(torch.float16),
        scheduler=make_scheduler(),
    )
    pipeline.save_pretrained(output)
    _name_plainly(output)
    (output / "README.md").write_text(model_card(plan, run), encoding="utf-8")


def _name_plainly(output: Path) -> None:
    """Take what is of this run alone out of the files, and name a tokenizer class that every
    version has."""
    for path in sorted(output.rglob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if path.name == "model_index.json":
            config["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
        if path.parent.name == "text_encoder":
            # transformers loads in the dtype named here and diffusers in float32: make them agree.
            config["dtype"] = "float32"
        if path.name == "tokenizer_config.json":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            for local in ("is_local", "local_files_only", "backend"):
                config.pop(local, None)
        if path.name == "tokenizer.json":
            # How training padded and cut is not for whoever loads it.
            config["padding"] = config["truncation"] = None
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(plan: Plan, run: Provenance) -> str:
    """The README of the folder."""
    colours, shapes = ", ".join(world.COLOURS), ", ".join(world.SHAPES)
    backgrounds, headings = ", ".join(world.BACKGROUNDS), ", ".join(world.HEADINGS)
    sizes = plan.transformer
    return f"""---
license: {LICENSE}
library_name: diffusers
pipeline_tag: text-to-video
tags: [cogvideox, tiny, video-editing]
---

# A tiny CogVideoX that edits drawn clips

A whole CogVideoX, a few megabytes large, for demonstrations and tests of video editing: it makes
and edits clips of {world.FRAMES} frames at {world.SIZE}x{world.SIZE} and {world.FPS} frames a
second, in which coloured shapes move over plain and textured backgrounds. It knows nothing else.

```python
from diffusers import CogVideoXPipeline

pipe = CogVideoXPipeline.from_pretrained("path/to/this/folder")
pipe(
    "a red ring moving right on a white background",
    num_frames={world.FRAMES},
    height={world.SIZE},
    width={world.SIZE},
    num_inference_steps=25,
    guidance_scale=3.0,
    max_sequence_length={sizes.text_tokens},
)
```

`max_sequence_length` must be {sizes.text_tokens}: the text encoder was trained at that length, and
the pipeline's own default is 226.

## What it knows

- Colours: {colours}. Shapes: {shapes}. Backgrounds: {backgrounds}.
- Ways to move: moving or curving, each {headings}.
- Prompts: "a red ring moving right on a white background", two objects joined by "and"
  ({world.TWO_OBJECTS:.0%} of the clips), any clause left out, "thing" for an object without a
  shape, and the empty prompt.

## Parts

| part | size |
|---|---|
| VAE | channels {plan.vae.channels}, latent {plan.vae.latent_channels}, 4x in space and time |
| transformer | {sizes.layers} layers, {sizes.heads} heads of {sizes.head_width}, patch 2, rotary |
| text encoder | T5, {sizes.text_layers} layers, width {sizes.text_width}, one token a word |
| scheduler | CogVideoX-5b's: velocities, zero terminal signal-to-noise ratio, trailing steps |

## How it was trained

By `python -m jobs.demo.training --output DIR --seed {run.seed}` on clips drawn by
`jobs/demo/world.py`; no other data. {run.machine}; {run.minutes:.0f}
minutes in all.

1. VAE, {plan.vae.steps} steps, with noise of up to {plan.vae.noise} of the latents' size from
   the first step; at the end the decoder alone for {plan.vae.decoder_steps} more.
   **{run.vae_psnr_db:.1f} dB** on clips that training never drew (mean PSNR of decoded posterior
   means).
2. Transformer and text encoder, {sizes.steps} steps of {sizes.batch} clips out of
   {sizes.pool_scenes * sizes.pool_looks}, with fixed noise of {sizes.latent_noise} on the scaled
   latents; 10% empty prompts, each clause dropped 10% of the time. Weight matrices by Muon, the
   rest by AdamW; places with an object weigh more.
3. **It was taught reference attention**: {sizes.reference_steps} steps of {sizes.reference_batch}
   pairs of clips with the same geometry and other colours, shapes or background, in which every
   attention layer of the edited clip also sees the keys and values of the source clip. It was also
   shown edits that start in the middle of the source's trajectory, {sizes.inverted_share:.0%} of
   them on trajectories of real inversions. The steps between {SHAPES_FROM:.0%} and {SHAPES_TO:.0%}
   of the stage were nearly all edits of a shape alone, without which the words for shapes are not
   learned; throughout, some 30% of the pairs were one clip twice, asked for as it is, and an edit
   with the empty prompt was its source. A CogVideoX that was trained on text to video alone was
   taught none of it, so how well *this* model edits says nothing of how well a larger one will.
{run.edits}"""
