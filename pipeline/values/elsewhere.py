"""What settings are called elsewhere, for messages that name what was meant."""

from __future__ import annotations

from collections.abc import Mapping

NAMES_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("num_inference_steps", "num_inversion_steps", "inference_steps", "num_steps"),
        "inversion.steps",
    ),
    "inversion_method": "inversion.method",
    **dict.fromkeys(
        ("guidance", "cfg_scale", "text_guidance_scale"), "reconstruction.guidance_scale"
    ),
    **dict.fromkeys(("strength", "denoising_strength"), "reconstruction.start"),
    **dict.fromkeys(("use_dynamic_cfg", "use_dynamic_guidance"), "reconstruction.dynamic_guidance"),
    **dict.fromkeys(("batch_size", "num_videos_per_batch"), "reconstruction.edits_at_once"),
    **dict.fromkeys(("num_frames", "max_num_frames", "video_length"), "video.frames"),
    **dict.fromkeys(("frame_rate", "frame_sample_step"), "video.fps"),
    **dict.fromkeys(("generator", "random_seed"), "seed"),
    **dict.fromkeys(("dtype", "torch_dtype", "weight_dtype", "mixed_precision"), "precision"),
    **dict.fromkeys(
        ("model", "model_path", "model_id", "pretrained_model_name_or_path", "checkpoint_path"),
        "checkpoint",
    ),
    **dict.fromkeys(("output_path", "output_dir", "output_folder"), "output"),
    "ulysses_degree": "cluster.reconstruction.ulysses",
    "ring_degree": "cluster.reconstruction.ring",
    "use_cfg_parallel": "cluster.reconstruction.cfg",
}
"""What diffusers, the public script and xFuser call a setting, and its place here."""

IN_THE_MANIFEST: Mapping[str, str] = {
    **dict.fromkeys(("video_path", "videos", "video_paths", "input_video"), "video"),
    **dict.fromkeys(("prompt", "prompts", "edits", "edit_prompt"), "edits"),
    "source_prompt": "source_prompt",
    **dict.fromkeys(("start_frame", "skip_frames_start"), "start_frame"),
    "skip_frames_end": "num_frames",
}
"""What belongs to one video, and the column of the manifest that it is in."""

NOT_THERE: Mapping[str, str] = {
    "num_videos_per_prompt": "each edit gives one video; for more, repeat the prompt, with another "
    "seed each",
    "eta": "every step is deterministic; `inversion.method` chooses how to invert",
    **dict.fromkeys(
        ("prompt_embeds", "negative_prompt_embeds"), "prompts are given as text, and encoded once"
    ),
    "latents": "edits start from a trajectory; `reconstruction.start` says where",
    **dict.fromkeys(
        ("address", "ray_address"),
        "the environment variable RAY_ADDRESS names the cluster to run on",
    ),
    "max_sequence_length": "the checkpoint says how many tokens a prompt has",
    **dict.fromkeys(
        ("inversion_deadline_s", "reconstruction_deadline_s"),
        "`cluster.stall_deadline_s` takes its place: so many seconds without progress, however "
        "long a video takes",
    ),
}
"""What diffusers or an earlier version takes and Retake does not, and what to do instead."""
