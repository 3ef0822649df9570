"""The bad inputs of docs/bad_inputs.md, by its headings: what each is, and how to make it here.

`python -m tests.docs.bad_inputs.page` prints the tables. An input whose error is a message has the
part of it that the page shows; docs/messages.md has whole messages.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.docs.bad_inputs.provoke import (
    EDITS,
    JOB,
    Outcome,
    changed,
    checkpoint,
    columns,
    cut,
    edit,
    index,
    job,
    location,
    manifest,
    mask,
    outcome,
    packed,
    pipe,
    put,
    renamed,
    results,
    row,
    set_to,
    video,
)
from tests.drawn_videos import draw, draw_sound, grays
from tests.pipeline.media.test_apart import endless_mp4

Bad = tuple[str, Callable[[], Any], str]
"""What the input is, how to make it, and the part of its message that the page shows, if any."""

VIDEO = draw(grays(20))
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LAUGHS = "\n".join(
    ["a0: &a0 x"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CODE = "!!python/object/apply:os.system [ls]"

BAD: dict[str, list[Bad]] = {
    "Job files": [
        ("an empty file", lambda: job(""), "is empty"),
        ("a list", lambda: job("- a\n"), "is a list"),
        ("one text", lambda: job("hello\n"), "is a text"),
        ("bytes that are not UTF-8", lambda: job(b"name: \xff\n"), "the byte ff is no UTF-8"),
        ("bytes of zero", lambda: job(JOB + "name: a\0b\n"), "it holds bytes of zero"),
        ("2 MB", lambda: job("#" * 2_000_000), "is larger than 1 MB"),
        ("a Parquet file", lambda: job(b"PAR1..."), "it is a Parquet file"),
        ("a video", lambda: job(VIDEO), "it is a video"),
        ("a tab", lambda: job(f"{JOB}inversion:\n\tsteps: 3\n"), "YAML indents with spaces"),
        ("a key twice", lambda: set_to("seed: 1\nseed: 2"), "stands in line 3 already"),
        ("an unknown key", lambda: set_to("sed: 1"), "did you mean 'seed'?"),
        ("no `output`", lambda: job("manifest: m\n"), "output: is missing"),
        ("a text for a number", lambda: set_to("seed: many"), "expected a whole number"),
        ("a number that is too large", lambda: set_to("inversion: {steps: 5000}"), "from 1 to"),
        ("`.nan`", lambda: set_to("reconstruction: {guidance_scale: .nan}"), "expected a number"),
        ("`010`, another base", lambda: set_to("seed: 010"), "expected a whole number"),
        ("aliases that stand for 10^9 values", lambda: set_to(LAUGHS), "more than 100000 values"),
        ("an alias in itself", lambda: set_to("a: &a [*a]"), "holds itself by an alias"),
        ("20,000 brackets", lambda: set_to("a: " + "[" * 20_000), "nested too deep"),
        ("a tag that runs code", lambda: set_to(f"name: {CODE}"), "is unknown; remove it"),
        ("a secret left out by a run", lambda: job("manifest: https://***@h/m\noutput: o\n"),
         "where a secret was"),
    ],
    "Manifests": [
        ("a file that is not there", lambda: manifest_at("none.parquet"), "no such file"),
        ("a folder without Parquet files", lambda: manifest_at("."), ".parquet"),
        ("a cut file", lambda: manifest(b"PAR1 cut"), "t.parquet"),
        ("a CSV file", lambda: manifest(b"video,prompt\na,b\n"), "retake manifest"),
        ("no column `video`", lambda: columns(video=...), "video"),
        ("`edits` as text", lambda: columns(edits="a zebra"), "edits"),
        ("`edits` without `prompt`", lambda: columns(edits=[{"promt": "a"}]), "prompt"),
        ("numbers in `video`", lambda: columns(video=3), "video"),
        ("texts in `start_frame`", lambda: columns(start_frame="ten"), "start_frame"),
        ("a column that the results have", lambda: columns(status="x"), "status"),
        ("no rows", lambda: manifest(pa.table({"video": pa.nulls(0)})), "has no rows"),
    ],
    "Rows and their ids": [
        ("no video", lambda: row(video=None), ""),
        ("a video of spaces", lambda: row(video="  "), ""),
        ("a control character in a path", lambda: row(video="a\nb.mp4"), ""),
        ("a protocol that nothing opens", lambda: row(video="foo://a.mp4"), ""),
        ("`s3:/` with one slash", lambda: row(video="s3:/b/a.mp4"), ""),
        ("`zip://` without an archive", lambda: row(video="zip://a.mp4"), ""),
        ("a `video_id` with `/`", lambda: row(video_id="a/b"), ""),
        ("a `video_id` that is a path", lambda: row(video_id="/etc/passwd"), ""),
        ("a `video_id` with `..`", lambda: row(video_id=".."), ""),
        ("a `video_id` with a backslash", lambda: row(video_id="..\\a"), ""),
        ("a device name of Windows", lambda: row(video_id="con.a"), ""),
        ("`COM¹`, another one", lambda: row(video_id="COM¹"), ""),
        ("a `video_id` of 300 bytes", lambda: row(video_id="a" * 300), ""),
        ("a dot at the end", lambda: row(video_id="a."), ""),
        ("a character that nobody sees", lambda: row(video_id="a\u200bb"), ""),
        ("half a character of UTF-16", lambda: row(video_id="a\ud800"), ""),
        ("an empty `video_id`", lambda: row(video_id=""), ""),
        ("`start_frame` below 0", lambda: row(start_frame=-1), ""),
        ("half a frame", lambda: row(start_frame=1.5), ""),
        ("`num_frames` 0", lambda: row(num_frames=0), ""),
        ("`fps` infinite", lambda: row(fps=math.inf), ""),
        ("a seed of 70 bits", lambda: row(seed=2**70), ""),
        ("no edits", lambda: row(edits=[]), ""),
        ("edits as one text", lambda: row(edits="a zebra"), ""),
    ],
    "Prompts and edits": [
        ("an empty prompt", lambda: edit(prompt=""), ""),
        ("a prompt of spaces", lambda: edit(prompt=" \n"), ""),
        ("no prompt", lambda: edit(prompt=None), ""),
        ("a prompt that is a number", lambda: edit(prompt=3), ""),
        ("an edit that is no struct", lambda: row(edits=[*EDITS, "a zebra"]), ""),
        ("the same edit twice", lambda: row(edits=[*EDITS, *EDITS]), ""),
        ("an `edit_id` that leaves the folder", lambda: edit(edit_id="../../a"), ""),
        ("a guidance scale below 0", lambda: edit(guidance_scale=-1.0), ""),
        ("a guidance scale of NaN", lambda: edit(guidance_scale=math.nan), ""),
        ("a seed below 0", lambda: edit(seed=-1), ""),
    ],
    "Masks": [
        ("a text of spaces", lambda: edit(mask=" "), ""),
        ("a number", lambda: edit(mask=3), ""),
        ("a protocol that nothing opens", lambda: edit(mask="foo://m.png"), ""),
        ("a file that is not there", lambda: mask(None), ""),
        ("an empty file", lambda: mask(b""), ""),
        ("a text", lambda: mask(b"no picture at all\n" * 20), ""),
        ("a video of sound alone", lambda: mask(draw_sound()), ""),
        ("another shape than its video's", lambda: mask(picture("png", "png")), ""),
        ("fewer frames than its clip", lambda: mask(draw(painted(5))), ""),
        ("black throughout", lambda: mask(draw(painted(9, white=0))), ""),
        ("white throughout", lambda: mask(draw(painted(9, white=64))), ""),
    ],
    "Videos": [
        ("a file that is not there", lambda: location("none.mp4"), ""),
        ("a folder", lambda: location("."), ""),
        ("a pipe", pipe, ""),
        ("a device that never ends", lambda: location("/dev/zero"), ""),
        ("an empty file", lambda: video(b""), ""),
        ("a text", lambda: video(b"no video at all\n" * 20), ""),
        ("a web page", lambda: video(b"<!DOCTYPE html><html>"), ""),
        ("a Git LFS pointer", lambda: video(POINTER.encode()), ""),
        ("a ZIP archive", lambda: video(b"PK\x03\x04" + b"\0" * 99), ""),
        ("a still image", lambda: video(picture("png", "png"), "a.png"), ""),
        ("a playlist of addresses",
         lambda: video(b"#EXTM3U\n#EXTINF:9,\nhttp://localhost:1/a.ts\n", "a.m3u8"), ""),
        ("a list of other files", lambda: video(b"ffconcat version 1.0\nfile /etc/passwd\n"), ""),
        ("a session description", lambda: video(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n"), ""),
        ("sound alone", lambda: video(draw_sound()), ""),
        ("a file that is cut off", lambda: video(VIDEO[:-400]), ""),
        ("3 frames", lambda: video(draw(grays(3))), ""),
        ("a file above `limits.file_gb`", lambda: video(VIDEO, file_gb=1e-6), ""),
        ("a picture above `limits.pixels`", lambda: video(VIDEO, pixels=1000), ""),
        ("more frames than `limits.frames`", lambda: video(VIDEO, frames=6), ""),
        ("a picture of 67 megapixels in 30 kB, above `limits.memory_gb`",
         lambda: video(picture("gif", "gif", 8192, "rgb8"), memory_gb=0.2), ""),
        ("an MP4 of 1.5 kB that says it has 80 million frames",
         lambda: video(endless_mp4(80_000_000), memory_gb=0.5), ""),
        ("400 streams", lambda: video(endless_mp4(1, tracks=400)), ""),
        ("100 MB of zeros in an archive of 100 kB",
         lambda: packed(b"\0" * 100_000_000, file_gb=0.01), ""),
        ("a name that an archive does not have", lambda: packed(VIDEO, "b.mp4"), ""),
        ("an archive that is none", lambda: archive_of(b"no archive"), ""),
    ],
    "Checkpoints": [
        ("weights that are pickles",
         lambda: checkpoint(renamed(WEIGHTS, WEIGHTS.replace("safetensors", "bin"))), "pickles"),
        ("a pickle named `.safetensors`", lambda: checkpoint(put(WEIGHTS, b"\x80\x04.")), WEIGHTS),
        ("half a file of weights", lambda: checkpoint(cut(WEIGHTS)), WEIGHTS),
        ("a header that says it has 10^18 bytes",
         lambda: checkpoint(put(WEIGHTS, (10**18).to_bytes(8, "little"))), WEIGHTS),
        ("a Git LFS pointer", lambda: checkpoint(put("vae/config.json", POINTER)), "LFS"),
        ("JSON that is cut", lambda: checkpoint(put("vae/config.json", "{")), "vae/config.json"),
        ("another model", lambda: checkpoint(changed("model_index.json", _class_name="X")), "X"),
        ("sizes that its weights do not have",
         lambda: checkpoint(changed("text_encoder/config.json", vocab_size=10)), "text_encoder"),
    ],
    "Output folders": [
        ("a cut file of results", lambda: results(b"PAR1 cut"), "not a parquet file"),
        ("an empty one", lambda: results(b""), "is empty"),
        ("one that is no Parquet", lambda: results(b"no table, but a text"), "not a parquet file"),
        ("one of another program", lambda: results(pa.table({"a": [1]})), "video_id"),
        ("a column of another type", lambda: results(of_results(video_id=[[1]])), "video_id"),
        ("a trajectory's index that is cut", lambda: index('{"body": {'), "inverted again"),
        ("an index that was altered", lambda: index('{"digest": "0", "body": {}}'), "digest"),
    ],
}  # fmt: skip


def painted(frames: int, white: int = 20) -> list[np.ndarray]:
    """Pictures of 64x48, of whose columns the first are white."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :white] = 255
    return [frame] * frames


def manifest_at(place: str) -> Any:
    from jobs.manifest.checks import check_manifest

    return check_manifest(place)


def picture(container: str, codec: str, size: int = 64, pix_fmt: str = "rgb24") -> bytes:
    """One black picture, as a file."""
    kind = {"png": "image2pipe"}.get(container, container)
    return draw([np.zeros((size, size, 3), np.uint8)], container=kind, codec=codec, pix_fmt=pix_fmt)


def archive_of(data: bytes) -> Any:
    Path("no.zip").write_bytes(data)
    return location("zip://a.mp4::no.zip")


def of_results(**values: list[Any]) -> pa.Table:
    names = ("video_id", "edit_id", "status", "fingerprint", "run", "finished_at")
    return pa.table({name: pa.nulls(1) for name in names} | values)


def provoked() -> Iterator[tuple[str, str, str, Outcome]]:
    """Heading, what the input is, the part of its message, and what came of it."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for heading, some in BAD.items():
            for what, do, part in some:
                yield heading, what, part, outcome(do)


def rows() -> Iterator[tuple[str, str, Outcome]]:
    """Heading, row of the page, and what came of the input."""
    for heading, what, part, found in provoked():
        gets = f"an error: `… {part} …`" if part else f"`{found.gets}`"
        yield heading, f"| {what} | {found.costs} | {gets} |", found


def main() -> None:
    shown = ""
    for heading, line, _ in rows():
        if heading != shown:
            print(f"\n## {heading}\n\n| the input | it costs | it gets |\n|---|---|---|")
            shown = heading
        print(line)


if __name__ == "__main__":
    main()
