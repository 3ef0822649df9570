"""Mistakes that people make, by heading of docs/messages.md: what was done, and how to do it here.

`python -m tests.docs.mistakes.page` prints the messages, whole, as the rows of that page's tables.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa

from tests.docs.mistakes.in_a_plan import PLANNING, SPEED
from tests.docs.mistakes.in_a_run import ENDING, IN_A_RUN
from tests.docs.mistakes.in_an_output import OUTPUTS
from tests.docs.mistakes.in_python import IN_PYTHON
from tests.docs.mistakes.in_storage import LIMITS, STORAGE
from tests.docs.mistakes.kinds import changes, commands, in_edit, in_row, jobs, videos
from tests.docs.mistakes.on_a_cluster import PLACEMENT, PREFLIGHT
from tests.docs.mistakes.on_a_head import SUBMISSION, joins
from tests.docs.mistakes.on_a_node import FETCHING, MEMORY, RUNNING
from tests.docs.mistakes.provoke import (
    EDITS,
    JOB,
    Mistakes,
    checkpoint,
    convert,
    manifest,
    plain,
    read,
    row,
    run_only,
    validate,
    without_ray,
    write_files,
)
from tests.small_models import change_json

WEIGHTS = "transformer/diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def rename(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / other)


def only_a_lora(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"x")


def keys(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / name, **values)


MISTAKES: dict[str, Mistakes] = {
    "Commands": {
        **commands(
            "rum job.yaml",
            "run",
            "run job.yaml other.yaml",
            "validate job.yaml --depp",
            "run job.yaml --limit 0",
            "run job.yaml --limit ten",
            "run job.yaml --set",
            "validate nothing.yaml",
            "validate clips",
            "validate m.parquet",
            "validate horse.mp4",
            "validate https://localhost:1/job.yaml",
            "validate foo://x/job.yaml",
            "init m.parquet",
            "init clips",
            "report nothing",
            "report foo://x",
            "report made --sample 0",
            "report made --compare nothing",
            "metrics made",
            "metrics nothing --clip openai/clip",
            "metrics made --clip /no/such/model",
            "export nothing to --format csv",
            "export made to --format webdatset",
            "export made made/to --format csv",
            "export made to --format csv --where promt=1",
            "accept made",
            'accept made --rule "backgroud_psnr_db >= 30"',
            "gc clips",
            "gc made --keep sometimes",
            "demo --output horse.mp4",
            "demo --output s3://bucket/demo",
        ),
        "`--only hors`": lambda: run_only("hors"),
        "`--only a/b/c`": lambda: run_only("a/b/c"),
        "`--only @none.txt`": lambda: run_only("@none.txt"),
        "`--only` and a table without `video_id`": lambda: run_only("o.csv", "video\nx\n"),
        "`--only m.parquet`, a manifest without `video_id`": lambda: run_only("m.parquet"),
        "`--only` and an empty list": lambda: run_only("@o.txt", ""),
        "`run` with `RAY_ADDRESS=127.0.0.1:1`, where no cluster is": lambda: without_ray(True),
        "`run` with `RAY_ADDRESS=10.0.0.1:6379` and no token": joins,
        "`run` with `RAY_ADDRESS=10.0.0.1:6379` and a wrong token": lambda: joins(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another-token-of-ours"
        ),
        "`run` where Ray does not start": lambda: without_ray(False),
    },
    "The job file": {
        "an empty file": lambda: validate("", whole=True),
        "`- a`, a list": lambda: validate("- a\n", whole=True),
        "without `output`": lambda: validate("manifest: m.parquet\n", whole=True),
        "a tab": lambda: validate("inversion:\n\tsteps: 3\n"),
        "`seed` twice": lambda: validate("seed: 1\nseed: 2\n"),
        "`manifest:m.parquet`": lambda: validate("manifest:m.parquet\n", whole=True),
        **jobs(
            "inversion: steps:3",
            "prompt: a zebra",
            "num_frames: 9",
            "video.frames: 9",
            "inversoin: {steps: 4}",
            "video: {size: 512}",
            "cluster: {gpus: 4}",
            "cluster: {address: auto}",
            "cluster: {device: cuda}",
            "cluster: {inversion_deadline_s: 900}",
            "cluster: {stall_deadline_s: 0}",
            "cluster: {storage_patience_s: 0}",
            "cluster: {stop_grace_s: -5}",
            "cluster: {stop_grace_s: 20s}",
            "cluster: {layout: both}",
            "cluster: {layout: shared, inversion: {groups: 1}}",
            "cluster: {layout: shared, inversion: {gpus: 2}}",
            "cluster: {reconstruction: {groups: 0}}",
            "cluster: {prompts: {gpus: 2}}",
            "precision: fp8",
            "seed: -1",
            "seed: 1e99",
            "inversion: {steps: 10.5}",
            "inversion: {steps: '10'}",
            "inversion: {steps: null}",
            "inversion: {iterations: 100}",
            "reconstruction: {start: 1.5}",
            "reconstruction: {start: 60}",
            "reconstruction: {inject_steps: [0.5]}",
            "reconstruction: {inject_steps: [0.9, 0.1]}",
            "reconstruction: {inject_blocks: ten}",
            "reconstruction: {guidance_scale: high}",
            "reconstruction: {reference: sorce}",
            "reconstruction: {residual: maybe}",
            "video: {height: 33}",
            "video: {fps: 0}",
            "limits: 50",
            "limits: {file_gb: 0}",
            "limits: {memory_gb: 0.1}",
            "limits: {pixels: 4k}",
            "limits: {max_frames: 900}",
        ),
        **changes(
            "guidance_scale=4",
            "num_inference_steps=25",
            "negative_prompt=blur",
            "inversion=4",
            "inversion.steps.x=25",
            "steps",
            "seed=[1",
        ),
    },
    "Locations in a job": {
        **jobs(
            "manifest: none.parquet\noutput: out",
            "manifest: clips/*.mp4\noutput: out",
            "manifest: horse.mp4\noutput: out",
            "manifest: nothing\noutput: out",
            "manifest: s3:/bucket/m.parquet\noutput: out",
            "manifest: https://localhost:1/m.parquet\noutput: out",
            "manifest: [m.parquet]\noutput: out",
            "manifest: null\noutput: out",
            "manifest: m.parquet\noutput: horse.mp4",
            "manifest: m.parquet\noutput: foo://x",
            whole=True,
        ),
        **jobs(
            "checkpoint: CogVideoX-5b",
            "checkpoint: horse.mp4",
            "checkpoint: nothing",
            "checkpoint: 5b/transformer",
            "checkpoint: https://huggingface.co/THUDM/CogVideoX-5b",
        ),
    },
    "Checkpoints": {
        name: lambda change=change, of=of: checkpoint(change, of)
        for name, change, of in (
            ("without the transformer's weights", remove(f"{WEIGHTS}.safetensors"), "5b"),
            ("half a file of weights", cut(f"{WEIGHTS}.safetensors"), "5b"),
            (
                "a Git LFS pointer",
                lambda f: (f / "vae/config.json").write_text(POINTER),
                "5b",
            ),
            (
                "`.bin` weights",
                rename(f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"),
                "5b",
            ),
            (
                "`.fp16.safetensors` alone",
                rename(f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"),
                "5b",
            ),
            ("without `vae`", lambda f: shutil.rmtree(f / "vae"), "5b"),
            ("a tokenizer without `spiece.model`", remove("tokenizer/spiece.model"), "pieces"),
            ("half a `spiece.model`", cut("tokenizer/spiece.model"), "pieces"),
            (
                "an image-to-video model",
                keys("model_index.json", _class_name="CogVideoXImageToVideoPipeline"),
                "5b",
            ),
            (
                "another model",
                keys("model_index.json", _class_name="StableDiffusionPipeline"),
                "5b",
            ),
            ("broken JSON", lambda f: (f / "vae/config.json").write_text("{"), "5b"),
            (
                "quantised weights",
                keys("transformer/config.json", quantization_config={"quant_method": "gguf"}),
                "5b",
            ),
            ("a LoRA", only_a_lora, "5b"),
            (
                "weights of another model",
                keys("text_encoder/config.json", vocab_size=10),
                "5b",
            ),
        )
    },
    "Manifests": {
        "a `caption` column": lambda: manifest({"video": "horse.mp4", "caption": "a zebra"}),
        "a `path` column": lambda: manifest({"path": "horse.mp4", "edits": EDITS}),
        "no column like `video`": lambda: manifest({"licence": "x", "edits": EDITS}),
        "`edits` as text": lambda: manifest({"video": "horse.mp4", "edits": "a zebra"}),
        "`edits` as a list of texts": lambda: manifest({"video": "a", "edits": ["a zebra"]}),
        "`promt` in an edit": lambda: row(edits=[{"promt": "a zebra"}]),
        "`guidance` in an edit": lambda: row(edits=[{"prompt": "a zebra", "guidance": 3}]),
        "numbers in `video`": lambda: manifest({"video": 3, "edits": EDITS}),
        "texts in `start_frame`": lambda: row(start_frame="ten"),
        "a column `status`": lambda: row(status="x"),
        "no rows": lambda: manifest(video=pa.array([], pa.string()), edits=pa.array([])),
        **{
            f"a manifest that {what}": lambda data=data: (
                str(Path("bad.parquet").write_bytes(data) or "")
                and validate("", "--set", "manifest=bad.parquet")
            )
            for what, data in (("is damaged", b"PAR1 cut"), ("is CSV", b"video,prompt\n"))
        },
    },
    "Rows": {
        **videos(
            "none.mp4",
            "none/a.mp4",
            "clips",
            "clips/*.mp4",
            "~/none.mp4",
            "C:\\clips\\a.mp4",
            "https://localhost:1/a.mp4",
            "https:/localhost/a.mp4",
            "foo://a.mp4",
            "zip://a.mp4",
            "zip://a.mp4::horse.mp4",
            "a:dog:b.mp4",
            " ",
        ),
        **in_row(video_id="a/b", start_frame=-1, num_frames=0, fps=0.0),
        "two rows with one `video_id`": lambda: manifest(
            *({"video": v, "video_id": "x", "edits": EDITS} for v in ("horse.mp4", "clips/a.mp4"))
        ),
        **in_edit(
            {"prompt": ""},
            {"prompt": "a", "edit_id": "a:b"},
            {"prompt": "a", "guidance_scale": -1.0},
            {"prompt": "a", "seed": -1},
        ),
        "an edit twice": lambda: row(edits=[*EDITS, *EDITS]),
        "`reference: source` and no `source_prompt`": lambda: validate(
            "reconstruction: {reference: source}\n"
        ),
        "a file that is cut off": lambda: read("cut.mp4"),
        "a video of 3 frames": lambda: read("short.mp4"),
        "`start_frame` after the end": lambda: read("horse.mp4", start_frame=100),
        "sound alone": lambda: read("song.mp4"),
        "an empty file": lambda: read("empty.mp4"),
        "a text": lambda: read("text.mp4"),
        "a Parquet file": lambda: read("m.parquet"),
        **LIMITS,
    },
    "`retake manifest`": {
        **commands(
            "manifest clips",
            "manifest clips m.csv --prompt 'a zebra'",
            "manifest clips x.parquet",
            "manifest none.csv x.parquet",
            "manifest 'none/*.mp4' x.parquet --prompt 'a zebra'",
            "manifest nothing x.parquet --prompt 'a zebra'",
            "manifest clips x.parquet --prompt ''",
            "manifest clips x.parquet --format foldr --prompt 'a zebra'",
            "manifest m.parquet m.parquet --prompt 'a zebra'",
        ),
        "a table with the columns `a`, `b`": lambda: convert("t.csv", "a,b\n1,2\n"),
        "with `path` and `url`": lambda: convert("t.csv", "path,url,prompt\n1,2,x\n"),
        "without prompts": lambda: convert("t.csv", "video,b\nhorse.mp4,2\n"),
        "`--video-column vidoe`": lambda: convert(
            "t.csv", "video,prompt\nhorse.mp4,x\n", "--video-column", "vidoe"
        ),
        "whose videos are missing": lambda: convert("t.csv", "video,prompt\nnone.mp4,x\n"),
        "with an empty prompt": lambda: convert("t.csv", "video,prompt\nhorse.mp4,\n"),
        "an empty table": lambda: convert("t.csv", ""),
        "broken JSON": lambda: convert("t.jsonl", '{"video"\n'),
        "a sheet of Excel": lambda: convert("t.xlsx", "PK"),
        "half a tar file": lambda: convert("t.tar", "xx", "--prompt", "a zebra"),
    },
    "`retake edit`": commands(
        "edit horse.mp4",
        "edit none.mp4 'a zebra'",
        "edit clips 'a zebra'",
        "edit 'clips/*.mp4' 'a zebra'",
        "edit https://localhost:1/a.mp4 'a zebra'",
        "edit short.mp4 'a zebra' --checkpoint 5b",
        "edit horse.mp4 ''",
        "edit horse.mp4 'a zebra' 'a cow' -o z.mp4",
        "edit horse.mp4 'a zebra' -o z.avi",
        "edit horse.mp4 'a zebra' -o cut.mp4",
        "edit horse.mp4 'a zebra' -o horse.mp4",
        "edit horse.mp4 'a zebra' -o '{name}.mp4'",
        "edit horse.mp4 'a zebra' -o cut.mp4/z.mp4",
        "edit horse.mp4 'a zebra' --steps 0",
        "edit horse.mp4 'a zebra' --steps ten",
        "edit horse.mp4 'a zebra' --steps 4 --num-inference-steps 5",
        "edit horse.mp4 'a zebra' --guidance 4",
        "edit horse.mp4 'a zebra' --strength 0.4",
        "edit horse.mp4 'a zebra' --inject-steps 0.5",
        "edit horse.mp4 'a zebra' --set steps=3",
        "edit horse.mp4 'a zebra' --device gpu",
        "edit horse.mp4 'a zebra' --height 33 --checkpoint 5b",
        "edit horse.mp4 'a zebra' --trajectory nothing",
        "edit horse.mp4 'a zebra' --keep-trajectory stored",
    ),
    "Speed": SPEED,
    "`retake plan`": PLANNING,
    "Python": IN_PYTHON,
    "GPUs and groups": PLACEMENT,
    "Nodes of a cluster": PREFLIGHT,
    "`retake submit`": SUBMISSION,
    "Checkpoints on their way to a node": FETCHING,
    "Memory": MEMORY,
    "While a job runs": {**RUNNING, **IN_A_RUN},
    "The end of a run": ENDING,
    "Output folders and storage": {**OUTPUTS, **STORAGE},
}


def provoked() -> Iterator[tuple[str, str, str]]:
    """The heading, what was done, and the message of each mistake."""
    wide = {"COLUMNS": "1000", "HF_HUB_OFFLINE": "1", "RETAKE_STORAGE_PATIENCE_S": "0.05"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder), patch.dict(os.environ, wide):
        os.environ.pop("RAY_ADDRESS", None)
        write_files()
        for heading, mistakes in MISTAKES.items():
            for what, do in mistakes.items():
                Path("job.yaml").write_text(JOB)
                yield heading, cell(what), cell(plain(do(), str(Path.cwd())))


def cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    last = ""
    for heading, what, message in provoked():
        if heading != last:
            print(f"\n## {heading}\n\n| what was done | the message | grade |\n|---|---|---|")
        last = heading
        print(f"| {what} | `` {message} `` | ? |")
