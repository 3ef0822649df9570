"""Stage 1: the video VAE.

The decoder sees latents with Gaussian noise of up to `noise` of their own size from the first step.
That spreads the latents, so that diffusion neither needs nor keeps more precision than the picture
shows; without it they lie on a thin sheet, and inversion ends far from a unit Gaussian. The encoder
is trained as a deterministic map with centred, unit-sized channels, and its posterior is narrow.
After the transformer, which sees the encoder's latents only, the decoder is trained some more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from torch import nn

from jobs.demo import world
from jobs.demo.training.common import Stage, device_of, step_draws
from jobs.demo.training.plan import VaePlan

# Standard deviation of the exported posterior, in latent units: a draw is as good as the mean.
POSTERIOR_STD = 0.01


def train_vae(
    plan: VaePlan,
    seed: int,
    work: Path,
    report: Callable[[str], None] = print,
    device: str = "cpu",
) -> AutoencoderKLCogVideoX:
    """Train the VAE and return it with its scaling factor measured and set."""
    torch.manual_seed(seed)
    vae = make_vae(plan).to(device)
    share_spatial_norms(vae)
    stage = Stage("vae", vae, work / "vae.pt", plan.steps, plan.learning_rate, report=report)
    stage.run(lambda step: vae_loss(vae, plan, seed, step))
    vae.register_to_config(scaling_factor=round(1.0 / latent_std(vae, seed), 4))
    narrow_posterior(vae)
    report(f"vae: {reconstruction_psnr(vae, seed):.2f} dB on held-out clips")
    return vae


def train_decoder(
    vae: AutoencoderKLCogVideoX,
    plan: VaePlan,
    seed: int,
    work: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Train the decoder alone for longer, in place: latents stay what the transformer knows."""
    stage = Stage(
        "decoder",
        vae.decoder,
        work / "decoder.pt",
        plan.decoder_steps,
        plan.decoder_learning_rate,
        report=report,
    )
    stage.run(lambda step: decoder_loss(vae, plan, seed, step))
    report(f"decoder: {reconstruction_psnr(vae, seed):.2f} dB on held-out clips")


def make_vae(plan: VaePlan) -> AutoencoderKLCogVideoX:
    """An untrained VAE of the planned size."""
    depth = len(plan.channels)
    return AutoencoderKLCogVideoX(
        block_out_channels=plan.channels,
        down_block_types=("CogVideoXDownBlock3D",) * depth,
        up_block_types=("CogVideoXUpBlock3D",) * depth,
        layers_per_block=1,
        norm_num_groups=plan.groups,
        latent_channels=plan.latent_channels,
        sample_height=world.SIZE,
        sample_width=world.SIZE,
        temporal_compression_ratio=4,
    )


def vae_loss(vae: AutoencoderKLCogVideoX, plan: VaePlan, seed: int, step: int) -> torch.Tensor:
    """The loss of one step: reconstruction through noisy latents, and the latents' size."""
    rng, generator = step_draws(seed, "vae", step)
    crop = plan.crop_px if step < plan.crop_share * plan.steps else world.SIZE
    batch = plan.crop_batch if crop < world.SIZE else plan.batch
    device = device_of(vae)
    clips, masks = (part.to(device) for part in draw_batch(rng, batch, crop))
    with torch.autocast(device.type, torch.bfloat16):
        latents = vae.encode(clips).latent_dist.mean.float()
        decoded = vae.decode(noised(latents, plan.noise, generator)).sample.float()
    picture = picture_loss(decoded, clips, masks)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    return picture + 0.02 * (mean.square().mean() + (std - 1.0).square().mean())


def decoder_loss(vae: AutoencoderKLCogVideoX, plan: VaePlan, seed: int, step: int) -> torch.Tensor:
    """The loss of one step of the decoder alone, on whole frames."""
    rng, generator = step_draws(seed, "decoder", step)
    device = device_of(vae)
    clips, masks = (part.to(device) for part in draw_batch(rng, plan.batch))
    with torch.autocast(device.type, torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(clips).latent_dist.mean.float()
        decoded = vae.decode(noised(latents, plan.noise, generator)).sample.float()
    return picture_loss(decoded, clips, masks)


def noised(latents: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Latents with noise of up to `most` of their own size, another share for each clip."""
    share = most * torch.rand(len(latents), 1, 1, 1, 1, generator=generator)
    noise = share * torch.randn(latents.shape, generator=generator)
    return latents + latents.detach().std() * noise.to(latents.device)


def picture_loss(decoded: torch.Tensor, clips: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error, objects and their surroundings counting five times.

    Shapes are recognised by their outlines, and most of what a decoder gets wrong lies there.
    """
    error = decoded - clips
    weight = 1.0 + 4.0 * F.max_pool3d(masks, (1, 5, 5), stride=1, padding=(0, 2, 2))
    return (weight * (error.square() + 0.3 * error.abs())).mean()


def draw_batch(
    rng: np.random.Generator, batch: int, crop: int = world.SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh clips in [-1, 1], [B, 3, F, crop, crop], and their objects' cover [B, 1, F, H, W]."""
    clips, masks = [], []
    for _ in range(batch):
        scene = world.random_scene(rng)
        x, y = _crop_corner(scene, rng, crop)
        window = np.s_[:, y : y + crop, x : x + crop]
        clips.append(world.draw(scene)[window])
        masks.append(world.draw_masks(scene).max(axis=0)[window])
    return to_tensor(np.stack(clips)), torch.from_numpy(np.stack(masks))[:, None]


def to_tensor(clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, F, H, W, 3] to float32 [B, 3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_frames(clips: torch.Tensor) -> np.ndarray:
    """float [B, 3, F, H, W] in [-1, 1] to uint8 [B, F, H, W, 3]."""
    levels = ((clips.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLCogVideoX, seed: int, clips: int = 16) -> float:
    """Mean PSNR in dB of decoded posterior means, on clips that training never drew."""
    rng, _ = step_draws(seed, "vae-held-out", 0)
    total = 0.0
    for _ in range(clips):
        clip = draw_batch(rng, 1)[0].to(device_of(vae))
        decoded = vae.decode(vae.encode(clip).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - clip) / 2.0).square().mean()
        total += float(-10.0 * torch.log10(error))
    return total / clips


@torch.no_grad()
def latent_std(vae: AutoencoderKLCogVideoX, seed: int, clips: int = 32) -> float:
    """Standard deviation of the latents of fresh clips, over all channels."""
    rng, _ = step_draws(seed, "vae-scale", 0)
    drawn = draw_batch(rng, clips)[0].to(device_of(vae))
    return float(vae.encode(drawn).latent_dist.mean.std())


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKLCogVideoX) -> None:
    """Fix the posterior's spread, which training does not use, to a small constant."""
    head: nn.Conv3d = vae.encoder.conv_out.conv
    half = head.out_channels // 2
    head.weight[half:] = 0.0
    assert head.bias is not None
    head.bias[half:] = 2.0 * float(np.log(POSTERIOR_STD))


def share_spatial_norms(vae: AutoencoderKLCogVideoX) -> None:
    """Run the decoder's 1x1x1 convolutions before the latent is enlarged and not after: the same
    numbers, and a fifth less time in a training step."""
    for module in vae.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            module.forward = _shared_norm(module)


def _shared_norm(norm: CogVideoXSpatialNorm3D) -> Callable[..., tuple[torch.Tensor, dict]]:
    def forward(
        f: torch.Tensor, zq: torch.Tensor, conv_cache: object = None
    ) -> tuple[torch.Tensor, dict]:
        scale = _enlarge(norm.conv_y(zq)[0], f.shape[-3:])
        shift = _enlarge(norm.conv_b(zq)[0], f.shape[-3:])
        return norm.norm_layer(f) * scale + shift, {}

    return forward


def _enlarge(latent: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Nearest neighbours, the first frame apart from the others when their number is odd."""
    frames, height, width = size
    if frames == 1 or frames % 2 == 0:
        return F.interpolate(latent, size=(frames, height, width))
    first = F.interpolate(latent[:, :, :1], size=(1, height, width))
    rest = F.interpolate(latent[:, :, 1:], size=(frames - 1, height, width))
    return torch.cat([first, rest], dim=2)


def _crop_corner(scene: world.Scene, rng: np.random.Generator, crop: int) -> tuple[int, int]:
    """The left upper corner of a window that is likely to hold an object part of the time."""
    if crop >= world.SIZE:
        return 0, 0
    one = scene.objects[int(rng.integers(len(scene.objects)))]
    centre = one.path.centres()[int(rng.integers(world.FRAMES))]
    corner = centre - crop / 2 + rng.uniform(-10, 10, size=2)
    # Whole patches of the VAE's grid, or a crop would show it positions that no frame has.
    x, y = np.clip(np.round(corner / 4) * 4, 0, world.SIZE - crop).astype(int)
    return int(x), int(y)
