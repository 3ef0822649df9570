"""What the names of files say: what counts in a checkpoint, and what is no checkpoint at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from pipeline.errors import UnsupportedCheckpoint

HASHED = (".json", ".safetensors", ".model")
"""The endings of all files that are ever loaded: these name a checkpoint, no other counts."""

INDEX = "model_index.json"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
LORA_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
SAT_FILES = ("mp_rank_00_model_states.pt", "3d-vae.pt")
POINTER = b"version https://git-lfs.github.com/spec/"
LISTED = 6
PUBLISHED = ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b", "zai-org/CogVideoX1.5-5B")
LEVELS = 5
"""Folders are looked into so deep to say what they hold."""
FORMS = (
    "`checkpoint` may be a local folder in diffusers format, a name on the Hugging Face Hub "
    "(zai-org/CogVideoX-5b), a URI of a folder (s3://bucket/CogVideoX-5b), or `embedded`"
)

FUSE_LORA = (
    "Retake loads whole checkpoints. Fuse the LoRA into its base and give the new folder: "
    "`python -c \"from diffusers import CogVideoXPipeline as P; p = P.from_pretrained('BASE'); "
    "p.load_lora_weights('LORA'); p.fuse_lora(); p.unload_lora_weights(); "
    "p.save_pretrained('FUSED')\"` (needs `pip install peft`)"
)
FULL_WEIGHTS = (
    "Retake needs the weights in float16, bfloat16 or float32: give the checkpoint that was "
    "quantised, such as zai-org/CogVideoX-5b"
)
DIFFUSERS_FORMAT = (
    "give the folder in diffusers format, with model_index.json, transformer/, vae/, "
    "text_encoder/, tokenizer/ and scheduler/, such as zai-org/CogVideoX-5b"
)


def counted_files(folder: Path) -> list[Path]:
    """The files that name a checkpoint, in order.

    A link in the place of a part is followed: a fine-tuned transformer beside the base's text
    encoder is loaded as if its files lay there.
    """
    linked = (folder / part for part in PARTS if (folder / part).is_symlink())
    found = (
        Path(place) / name
        for root in (folder, *linked)
        for place, _, names in os.walk(root)
        for name in names
    )
    return sorted(path for path in found if path.suffix in HASHED and path.is_file())


def refuse_pointers(folder: Path, files: Iterable[Path]) -> None:
    """Refuse a clone whose large files were not fetched, with the names of all of them.

    Raises:
        UnsupportedCheckpoint: a file holds a pointer of Git LFS.
    """
    named = {path.relative_to(folder).as_posix(): path for path in files}
    loaded = {n: path for n, path in named.items() if n.split("/")[0] in (*PARTS, INDEX)}
    if names := [name for name, path in loaded.items() if is_pointer(path)]:
        raise UnsupportedCheckpoint(
            f"{listed(names)}: {'each is' if len(names) > 1 else 'it is'} a pointer of Git LFS, "
            "not the file; fetch the files with `git lfs pull` in the clone"
        )


def is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def refuse_lora(folder: Path) -> None:
    """Refuse a checkpoint with a LoRA in it: it would be left out without a word.

    Raises:
        UnsupportedCheckpoint: with how to fuse it.
    """
    for place in (folder, *(folder / part for part in PARTS)):
        for name in LORA_FILES:
            if (place / name).is_file():
                file = (place / name).relative_to(folder).as_posix()
                raise UnsupportedCheckpoint(f"{file} is a LoRA, which is not loaded. {FUSE_LORA}")


def describe(names: Collection[str]) -> str | None:
    """What files without a `model_index.json` are, and what to do; None where nothing says it.

    Args:
        names: of files, with `/` between parts.
    """
    last = {name.rpartition("/")[2]: name for name in names}
    top = {name.split("/")[0] for name in names}
    if "job.yaml" in top and top & {"results", "trajectories", "edits", "report", "prompts"}:
        return (
            "it is the output folder of a job; `checkpoint` is the model: see `checkpoint` in the "
            "job.yaml there for the one that the job used"
        )
    if lora := next((last[name] for name in LORA_FILES if name in last), None):
        return f"it holds a LoRA ({lora}) and no whole model. {FUSE_LORA}"
    if sat := next((last[name] for name in SAT_FILES if name in last), None):
        return f"it has the original SAT layout ({sat}); {DIFFUSERS_FORMAT}"
    for endings, kind, way_out in (
        ((".gguf",), "quantised weights in GGUF format", FULL_WEIGHTS),
        ((".zip", ".tar", ".gz", ".tgz"), "an archive", "unpack it, and give the folder"),
        (
            (".safetensors", ".ckpt", ".pt", ".pth", ".bin"),
            "weights without the rest of a checkpoint",
            DIFFUSERS_FORMAT,
        ),
        (("model_index.json",), "one file of a checkpoint", "give the folder that it lies in"),
    ):
        if found := sorted(name for name in names if name.endswith(endings) and name in top):
            return f"{found[0]}: {kind}; {way_out}"
    return None


def names_in(folder: Path) -> Iterator[str]:
    """The files of a folder to a depth of `LEVELS`, with `/` between parts."""
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if len(inside.parts) + 1 >= LEVELS:
            folders.clear()
        yield from ((inside / file).as_posix() for file in files)


def what_it_is(uri: str, names: Collection[str], *, above: bool) -> str:
    """What a folder without a `model_index.json` is, and what to give instead."""
    base = uri.rstrip("/")
    if above:
        parent, _, name = base.rpartition("/")
        better = parent or f"{base}/.."
        return f"it is the folder {name} of a checkpoint; give the checkpoint's folder: {better}"
    ending = f"/{INDEX}"
    if deeper := sorted(name.removesuffix(ending) for name in names if name.endswith(ending)):
        places = ", ".join(f"{base}/{name}" for name in deeper[:3])
        one_of = "one of " if len(deeper) > 1 else ""
        return f"the folder itself is no checkpoint, but one lies in it; give {one_of}{places}"
    return describe(names) or (
        f"it lacks model_index.json; expected a CogVideoX folder in diffusers format, as written "
        f"by `CogVideoXPipeline.save_pretrained`. {_found(names)}. {FORMS}"
    )


def _found(names: Collection[str]) -> str:
    top = sorted({name.split("/")[0] for name in names})
    return f"Found {', '.join(top[:8])}{', …' if len(top) > 8 else ''}" if top else "It is empty"


def did_you_mean(name: str) -> str:
    """`(did you mean …?)` where a name is close to a published one."""
    known = {full.rpartition("/")[2].lower(): full for full in PUBLISHED}
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f" (did you mean {known[close[0]]} on the Hugging Face Hub?)" if close else ""


def listed(names: Collection[str]) -> str:
    """Names for a message, cut where they are many."""
    ordered = sorted(names)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return ", ".join(ordered[:LISTED]) + more


def unfinished_downloads(folder: Path) -> list[str]:
    """The files of a download that did not finish, as `hf download` and others leave them."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.absolute().parent.name == "snapshots":  # in the Hub's own cache
        places.append(folder.absolute().parent.parent / "blobs")
    endings = {".incomplete", ".part", ".aria2", ".crdownload"}
    return sorted(
        file.name
        for place in places
        for pattern in ("*", "*/*")
        for file in place.glob(pattern)
        if file.suffix in endings
    )
