"""What is measured of an edit after it is stored: the records of its scores.

Each kind of measure is a record, whole or None, with the name of the model that gave it and a
fingerprint: of the model, of the settings, and of all else that changes its numbers. A kind whose
fingerprint is another one today is measured again. Importing this costs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameScores:
    """From frames alone. Outside and inside are those of the edit's mask; without one, of the place
    where the edit differs from its source.

    Args:
        background_psnr_db: PSNR in dB of the edit against its source outside of the mask.
        background_ssim: structural similarity there (Wang et al., 2004), 1 for the same.
        change: mean absolute difference to the source inside of the mask, 0 to 1.
        changed_fraction: part of all pixels that differ from the source visibly, 0 to 1.
        motion_agreement: 1 where the edit moves in the same places as its source.
        flicker: that of the edit, less that of its source; luma, 0 to 1.
        sharpness: energy of the Laplacian of the luma, over that of the source; 1 for the same.
        fingerprint: of how these are computed.
        error: why some are missing.
    """

    background_psnr_db: float | None = None
    background_ssim: float | None = None
    change: float | None = None
    changed_fraction: float | None = None
    motion_agreement: float | None = None
    flicker: float | None = None
    sharpness: float | None = None
    fingerprint: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ClipScores:
    """From a CLIP model (Radford et al., 2021); cosines, -1 to 1.

    Args:
        text: agreement of the frames with the prompt, a mean.
        direction: agreement of the change of the frames with the change from the source's prompt to
            the edit's (Gal et al., "StyleGAN-NADA", 2022); None without a source prompt.
        frames: agreement of the frames with each other.
        model, fingerprint: the model's name, and what stands for it and for how it was asked.
        error: why there are none.
    """

    text: float | None = None
    direction: float | None = None
    frames: float | None = None
    model: str | None = None
    fingerprint: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class DinoScores:
    """From a DINO model (Caron et al., 2021).

    Args:
        source: mean cosine between the class tokens of the edit's frames and its source's.
        structure: mean distance of the self-similarities of the patch tokens (Tumanyan et al.,
            "Splicing ViT Features", 2022); 0 for the same structure.
        model, fingerprint, error: as of `ClipScores`.
    """

    source: float | None = None
    structure: float | None = None
    model: str | None = None
    fingerprint: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class JudgeScores:
    """From a model that looks at source and edit and answers in words.

    Args:
        follows: does the edit do what was asked? 1 (not at all) to 4 (wholly).
        quality: does it look like a real video? 1 to 4.
        preserves: is all else as it was? 1 to 4.
        reason: in the judge's words.
        model, fingerprint: as of `ClipScores`; the prompt of the judge is part of it.
        error: why there is no answer, or what is wrong with it.
    """

    follows: int | None = None
    quality: int | None = None
    preserves: int | None = None
    reason: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of an edit by kind; None for a kind that was not measured."""

    frames: FrameScores | None = None
    clip: ClipScores | None = None
    dino: DinoScores | None = None
    judge: JudgeScores | None = None
