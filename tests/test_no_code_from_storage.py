"""Nothing that is read from storage can run code: the source is searched, and it is tried."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cluster.results.damaged import Damaged
from cluster.results.parts import read_parts
from jobs.errors import JobError
from jobs.spec import load_job
from pipeline.model.checkpoint import open_checkpoint
from pipeline.storage import Folder
from pipeline.trajectories.trajectory import Trajectory
from tests.small_models import change_json, write_checkpoint

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "cluster", "jobs", "docs")
FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"unsafe_load", "full_load", "load_pickle", "read_pickle"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{file}:{node.lineno}", node


def trees() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_module_that_can_run_what_it_reads_is_imported() -> None:
    found = []
    for file, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file}: {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
    assert found == []


def test_no_call_runs_what_it_reads() -> None:
    found = []
    for where, call in calls():
        name = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        bad = name in FORBIDDEN_CALLS or name.split(".")[-1] in FORBIDDEN_ATTRIBUTES
        bad |= name == "torch.load" and options.get("weights_only") != "True"
        bad |= options.get("trust_remote_code", "False") != "False"
        bad |= options.get("allow_pickle", "False") != "False"
        bad |= name == "yaml.load"
        bad |= name.endswith("from_pretrained") and options.get("use_safetensors") == "False"
        if bad:
            found.append(f"{where}: {name}")
    assert found == []


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that is there once the code of `Payload` has run."""
    return tmp_path / "ran"


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_the_payload_works(ran: Path) -> None:
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()


@pytest.mark.parametrize("name", ["bin", "pt", "ckpt", "safetensors"])
def test_the_pickled_weights_of_a_checkpoint_are_not_loaded(
    tmp_path: Path, ran: Path, name: str
) -> None:
    write_checkpoint(tmp_path / "model", "5b")
    weights = tmp_path / "model/transformer/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(f".{name}").write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(ValueError):
        open_checkpoint(str(tmp_path / "model"))
    assert not ran.exists()


def test_the_code_in_a_checkpoint_is_not_run(tmp_path: Path, ran: Path) -> None:
    model = tmp_path / "model"
    write_checkpoint(model, "5b")
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    for part in ("", "transformer/", "vae/", "text_encoder/", "tokenizer/", "scheduler/"):
        for module in ("modeling.py", "pipeline.py", "__init__.py", "setup.py"):
            (model / part / module).parent.mkdir(exist_ok=True)
            (model / part / module).write_text(code)
    own = {"AutoModel": "modeling.Model", "AutoTokenizer": ["modeling.Tokenizer", None]}
    for config in ("transformer/config.json", "vae/config.json", "text_encoder/config.json"):
        change_json(model / config, auto_map=own, custom_pipeline="pipeline")
    from pipeline import Editor

    Editor.from_pretrained(str(model))
    assert not ran.exists()


def test_a_pickle_in_the_place_of_a_shard_is_damage(tmp_path: Path, ran: Path) -> None:
    from pipeline import Editor

    write_checkpoint(tmp_path / "model", "5b")
    editor = Editor.from_pretrained(str(tmp_path / "model"))
    editor.set_progress_bar_config(disable=True)
    frames = torch.zeros(9, 32, 48, 3, dtype=torch.uint8)
    editor.invert(frames, steps=2).save(str(tmp_path / "stored"))
    (shard,) = (tmp_path / "stored").glob("*.safetensors")
    data = pickle.dumps(Payload(ran))
    shard.write_bytes(data + b"\0" * (shard.stat().st_size - len(data)))
    with pytest.raises(Exception, match="altered|damaged|inverted again"):
        editor.reconstruct(Trajectory.load(str(tmp_path / "stored")), "a", start=1.0)
    assert not ran.exists()


def test_the_index_of_a_trajectory_names_no_file_outside_of_it(tmp_path: Path) -> None:
    from pipeline.trajectories.index import TrajectoryDamaged, digest

    folder = tmp_path / "stored"
    folder.mkdir()
    save_file({"x": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    shard = {"file": "../other.safetensors", "bytes": 1, "data_offset": 0, "levels": [0, 1]}
    body = {
        "format": 1,
        "chunks": 48,
        "key": "k",
        "shape": [1, 1, 1, 3],
        "dtype": "fp16",
        "shards": [{**shard, "chunks": [0, 48], "digests": [[""] * 48]}],
    }
    from pipeline.trajectories import index

    body["format"], body["chunks"] = index.FORMAT, index.CHUNKS
    text = json.dumps(body, sort_keys=True)
    whole = {"digest": digest(text.encode(), 64), "body": body}
    (folder / "index.json").write_text(json.dumps(whole, sort_keys=True))
    with pytest.raises(TrajectoryDamaged, match="none of this trajectory"):
        Trajectory.load(str(folder))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!include {}",
    ],
)
def test_a_job_file_runs_nothing(tmp_path: Path, ran: Path, value: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"manifest: m.parquet\noutput: out\nname: {value.format(ran)}\n")
    with pytest.raises(JobError, match="the tag .* is unknown"):
        load_job(str(job))
    with pytest.raises(JobError, match="the tag .* is unknown"):
        load_job(str(write(tmp_path / "good.yaml")), [f"name={value.format(ran)}"])
    assert not ran.exists()


def test_results_of_another_program_run_nothing(tmp_path: Path, ran: Path) -> None:
    """pandas and Arrow write pickles into a file's metadata, and into columns of bytes."""
    table = pa.table({"video_id": [pickle.dumps(Payload(ran))]})
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata[b"ARROW:extension:metadata"] = pickle.dumps(Payload(ran))
    field = pa.field("video_id", pa.binary(), metadata=metadata)
    (tmp_path / "results").mkdir()
    pq.write_table(table.cast(pa.schema([field])), tmp_path / "results/a.parquet")
    shutil.copy(tmp_path / "results/a.parquet", tmp_path / "m.parquet")
    from jobs.manifest.checks import check_manifest

    with pytest.raises(ValueError):
        check_manifest(str(tmp_path / "m.parquet"))
    damaged: list[Damaged] = []
    list(read_parts(Folder(str(tmp_path)), None, damaged.append))
    assert len(damaged) == 1 and not ran.exists()


def write(path: Path) -> Path:
    path.write_text("manifest: m.parquet\noutput: out\n")
    return path
