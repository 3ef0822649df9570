"""A checkpoint that lies elsewhere: pinned, fetched once for a node, and only what is loaded."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from io import BytesIO, UnsupportedOperation
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import StorageFailed, UnsupportedCheckpoint
from pipeline.model.checkpoint import (
    EDITING_PARTS,
    PROMPT_PARTS,
    CheckpointPin,
    load_transformer,
    open_checkpoint,
    open_configuration,
)
from pipeline.model.folder import node, outline
from pipeline.model.folder.bucket import InStorage
from pipeline.model.folder.node import Range
from tests.checkpoint_stores import Hub, hub_server, in_memory, sha, web_server
from tests.s3_server import s3_server
from tests.small_models import change_json

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
WEIGHTS = (TRANSFORMER, VAE, TEXT_ENCODER)
COMMITS = "a" * 40, "b" * 40


def weights_in(folder: Path) -> set[str]:
    """The files of weights that lie in a folder, whole or not."""
    found = folder.rglob("*.safetensors*")
    return {path.relative_to(folder).as_posix() for path in found if ".json" not in path.name}


def age(file: Path) -> None:
    """Have a file be one that nobody writes to any more."""
    os.utime(file, (0, time.time() - 2 * node.ABANDONED_S))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def stored(copy: Path, tmp_path: Path) -> str:
    """A checkpoint in a store of this process."""
    return in_memory(copy, f"{tmp_path.name}/checkpoint")


# The driver looks, and fetches no weights


def test_all_of_a_checkpoint_is_checked_without_its_weights(
    copy: Path, stored: str, cache: Path
) -> None:
    info = open_checkpoint(stored, parts=(), cache=cache)
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
    assert weights_in(info.path) == set()
    assert info.pin
    assert info.pin.fingerprint == info.fingerprint
    assert info.pin.sizes[TRANSFORMER] == (copy / TRANSFORMER).stat().st_size
    with pytest.raises(ValueError, match="without transformer"):
        load_transformer(info, "float32", "cpu")


@pytest.mark.parametrize(
    ("beginning", "gap"), [(4096, 0), (4096, 1 << 30), (1 << 14, 100), (1 << 30, 0)]
)
def test_the_fingerprint_is_the_same_however_the_weights_are_read(
    copy: Path, stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch, beginning: int, gap: int
) -> None:
    assert int.from_bytes((copy / TRANSFORMER).read_bytes()[:8], "little") > 4096
    shutil.copy(copy / TRANSFORMER, copy / "extra.safetensors")
    (copy / "vae" / "other.safetensors").write_bytes(b"no header" * 1000)
    uri = in_memory(copy, f"{stored.removeprefix('memory://')}-with-extra-files")
    monkeypatch.setattr(outline, "BEGINNING", beginning)
    monkeypatch.setattr(outline, "GAP", gap)
    info = open_checkpoint(uri, parts=(), cache=cache)
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda p: cut(p / TRANSFORMER), "is not whole: it has"),
    "no weights": (lambda p: (p / VAE).unlink(), "vae has no weights"),
    "a web page": (lambda p: (p / VAE).write_bytes(b"<html>" * 999), "is no safetensors file"),
    "empty": (lambda p: (p / VAE).write_bytes(b""), "is no safetensors file"),
    "a variant": (
        lambda p: (p / VAE).rename(p / "vae/diffusion_pytorch_model.fp16.safetensors"),
        "`mv memory://.*/vae/diffusion_pytorch_model.fp16.safetensors memory://",
    ),
    "another size": (
        lambda p: change_json(p / "transformer/config.json", num_layers=3),
        "Weights and configuration are of different models",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_wrong_with_weights_is_found_where_they_lie(
    copy: Path, tmp_path: Path, cache: Path, how: str
) -> None:
    spoil, answer = SPOILT[how]
    spoil(copy)
    uri = in_memory(copy, f"{tmp_path.name}/spoilt")
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(uri, parts=(), cache=cache)
    assert weights_in(cache) == set()


def read_parts_with(patch: pytest.MonkeyPatch, opened: Callable[[], Any]) -> None:
    """Have the store open a file of which parts are read in another way."""
    open_file = MemoryFileSystem.open

    def other(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        return opened() if "cache_type" in options else open_file(self, path, mode, **options)

    patch.setattr(MemoryFileSystem, "open", other)


def test_a_store_that_gives_no_parts_of_files_is_read_whole(
    copy: Path, stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(BytesIO):
        def seek(self, *_: object) -> int:
            raise UnsupportedOperation("seek")

    read_parts_with(monkeypatch, lambda: Stream(b"whole"))
    info = open_checkpoint(stored, parts=(), cache=cache)
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
    assert weights_in(info.path) == set(WEIGHTS)


def test_what_was_read_of_a_version_is_not_read_again(
    stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_checkpoint(stored, parts=(), cache=cache)
    (kept,) = (cache / "outlines").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(InStorage, "read", None)
        assert open_checkpoint(stored, parts=(), cache=cache) == first
    kept.write_bytes(kept.read_bytes()[:-30])
    assert open_checkpoint(stored, parts=(), cache=cache) == first


def test_a_lost_connection_does_not_fetch_all_of_a_checkpoint(
    stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ConnectionError("gone")

    read_parts_with(monkeypatch, refuse)
    with pytest.raises(StorageFailed, match="gone"):
        open_checkpoint(stored, parts=(), cache=cache)
    assert weights_in(cache) == set()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_that_lists_a_folder_is_a_store(
    copy: Path, tmp_path: Path, ranges: bool
) -> None:
    asked: list[str] = []
    with web_server(copy.parent, asked, ranges=ranges) as address:
        info = open_checkpoint(f"{address}/copy", parts=(), cache=tmp_path / "cache")
        assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
        assert weights_in(info.path) == (set() if ranges else set(WEIGHTS))
        assert not (ranges and [one for one in asked if one.endswith(".safetensors")])
        cut(copy / VAE)
        with pytest.raises(UnsupportedCheckpoint, match="is not whole"):
            open_checkpoint(f"{address}/copy", parts=(), cache=tmp_path / "cache")


def test_ranges_that_lie_close_become_one() -> None:
    ranges = [Range("b", 0, 5), Range("a", 10, 20), Range("a", 0, 4), Range("a", 200_000, 200_001)]
    merged = [Range("a", 0, 20), Range("a", 200_000, 200_001), Range("b", 0, 5)]
    assert outline.merged(ranges) == merged


# A rank opens what the driver found


@pytest.mark.parametrize(
    ("parts", "weights"),
    [(EDITING_PARTS, {TRANSFORMER, VAE}), (PROMPT_PARTS, {TEXT_ENCODER}), ((), set())],
)
def test_a_rank_fetches_the_weights_that_it_loads(
    stored: str, cache: Path, parts: tuple[str, ...], weights: set[str]
) -> None:
    pin = open_checkpoint(stored, parts=(), cache=cache).pin
    assert pin
    info = open_checkpoint(pin, parts=parts, cache=cache)
    assert weights_in(info.path) == weights
    assert info.fingerprint == pin.fingerprint
    assert info.parts == parts


def test_a_rank_asks_the_store_nothing_where_its_node_has_all(
    stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = open_checkpoint(stored, cache=cache).pin
    assert pin
    monkeypatch.setattr(fsspec.filesystem("memory"), "find", None)
    assert open_checkpoint(pin, parts=EDITING_PARTS, cache=cache).fingerprint == pin.fingerprint


def test_files_that_were_replaced_since_are_refused_where_they_must_be_fetched(
    copy: Path, stored: str, cache: Path, tmp_path: Path
) -> None:
    pin = open_checkpoint(stored, cache=cache).pin
    assert pin
    name = stored.removeprefix("memory://")
    fsspec.filesystem("memory").put_file(str(copy / VAE), f"/{name}/{VAE}")
    with pytest.raises(UnsupportedCheckpoint, match="changed since the job started"):
        open_checkpoint(pin, parts=EDITING_PARTS, cache=tmp_path / "another node")
    assert weights_in(tmp_path / "another node") == set()
    assert open_checkpoint(pin, parts=EDITING_PARTS, cache=cache).path.name == pin.version


def test_files_that_are_replaced_while_they_are_copied_are_not_kept(
    copy: Path, stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = open_checkpoint(stored, parts=(), cache=cache).pin
    fs, name = fsspec.filesystem("memory"), stored.removeprefix("memory://")
    get_file = fs.get_file

    def get_and_replace(source: str, target: str) -> None:
        get_file(source, target)
        fs.put_file(str(copy / VAE), f"/{name}/{VAE}")

    monkeypatch.setattr(fs, "get_file", get_and_replace)
    assert pin
    with pytest.raises(UnsupportedCheckpoint, match="changed since the job started"):
        open_checkpoint(pin, parts=EDITING_PARTS, cache=cache)
    assert weights_in(cache) == set()


def test_two_versions_lie_side_by_side(copy: Path, stored: str, cache: Path) -> None:
    first = open_checkpoint(stored, cache=cache)
    change_json(copy / "scheduler/scheduler_config.json", beta_end=0.0125)
    name = f"{stored.removeprefix('memory://')}/scheduler/scheduler_config.json"
    fsspec.filesystem("memory").put_file(str(copy / "scheduler/scheduler_config.json"), f"/{name}")
    second = open_checkpoint(stored, parts=(), cache=cache)
    assert first.pin
    assert second.pin
    assert (first.scheduler["beta_end"], second.scheduler["beta_end"]) == (0.012, 0.0125)
    assert open_checkpoint(first.pin, cache=cache).scheduler["beta_end"] == 0.012
    assert open_checkpoint(second.pin, cache=cache).scheduler["beta_end"] == 0.0125


ELSEWHERE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other weights": (
        lambda p: (p / VAE).write_bytes((p / VAE).read_bytes()[:-1] + b"\x07"),
        "on this node holds another checkpoint",
    ),
    "another configuration": (
        lambda p: change_json(p / "vae/config.json", norm_eps=1e-5),
        "on this node holds another checkpoint",
    ),
    "no folder": (shutil.rmtree, "there is none on this one. Put it at the same path"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_another_folder_on_another_node_is_refused(copy: Path, what: str) -> None:
    pin = open_checkpoint(str(copy), parts=()).pin
    assert pin
    assert open_checkpoint(pin, parts=EDITING_PARTS).path == copy
    spoil, answer = ELSEWHERE[what]
    spoil(copy)
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(pin, parts=EDITING_PARTS)


@pytest.mark.parametrize("uri", ["embedded", "pkg://jobs.demo/checkpoint"])
def test_a_checkpoint_of_a_package_is_that_of_the_driver(uri: str) -> None:
    pin = open_checkpoint(uri, parts=()).pin
    assert pin
    assert open_checkpoint(pin, parts=PROMPT_PARTS).fingerprint == pin.fingerprint
    with pytest.raises(UnsupportedCheckpoint, match="another checkpoint"):
        open_checkpoint(replace(pin, fingerprint="0" * 16))


# One process of a node fetches


def test_a_process_waits_for_the_one_that_fetches(
    stored: str, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, waits = InStorage.find(stored, cache), threading.Event()
    monkeypatch.setattr(node.log, "filter", lambda record: not waits.set())
    opened: list[Any] = []
    with node._locked(remote, "configuration"):
        thread = threading.Thread(
            target=lambda: opened.append(open_checkpoint(stored, cache=cache))
        )
        thread.start()
        assert waits.wait(30)
        remote.copy(list(remote.sizes))
        monkeypatch.setattr(MemoryFileSystem, "get_file", None)
    thread.join(30)
    assert opened[0].path == remote.folder
    assert (
        f"waiting for another process of this node, which fetches configuration of {stored} to"
        in caplog.text
    )


def test_where_nothing_can_be_locked_files_are_fetched_all_the_same(
    stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert weights_in(open_checkpoint(stored, cache=cache).path) == set(WEIGHTS)
    assert "cannot be locked" in caplog.text


def test_what_another_node_is_still_writing_is_left_alone(stored: str, cache: Path) -> None:
    """On a shared folder whose locks do not reach other nodes, every node holds the lock."""
    pin = open_checkpoint(stored, parts=(), cache=cache).pin
    assert pin
    theirs, dead = (
        cache / "checkpoints" / pin.version / f"{TRANSFORMER}.{who}.part" for who in ("1a", "2b")
    )
    theirs.parent.mkdir(exist_ok=True)
    for file in (theirs, dead):
        file.write_bytes(b"half")
    age(dead)
    assert weights_in(open_checkpoint(pin, parts=EDITING_PARTS, cache=cache).path) == {
        TRANSFORMER,
        VAE,
        f"{TRANSFORMER}.1a.part",
    }


@pytest.mark.parametrize("needs", ["all", "parts"])
def test_a_disk_without_room_is_found_before_anything_is_copied(
    stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch, needs: str
) -> None:
    pin = open_checkpoint(stored, parts=(), cache=cache).pin
    assert pin
    needed = sum(pin.sizes[n] for n in (WEIGHTS if needs == "all" else (TRANSFORMER, VAE)))
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    answer = (
        f"need {needed:,} bytes and {cache}.* has {needed - 1:,} free. Make room, or set "
        "RETAKE_CACHE to a folder on a larger disk"
    )
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(
            pin,
            parts=(*WEIGHTS, *PROMPT_PARTS, *EDITING_PARTS) if needs == "all" else EDITING_PARTS,
            cache=cache,
        )
    assert weights_in(cache) == set()


def test_a_cache_that_cannot_be_written_names_the_way_out(stored: str, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(UnsupportedCheckpoint, match="cannot be fetched to .*Set RETAKE_CACHE to"):
        open_checkpoint(stored, cache=cache)


def test_a_variable_moves_the_cache(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_checkpoint(stored, parts=()).path.is_relative_to(tmp_path / "home/.cache/retake")
    monkeypatch.setenv("RETAKE_CACHE", "~/large")
    assert open_checkpoint(stored, parts=()).path.is_relative_to(tmp_path / "home/large")


def test_a_user_without_a_home_opens_checkpoints(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers run as a number that no account has."""

    def no_account(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("RETAKE_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_account)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert open_checkpoint("embedded").family == "5b"
    path = open_checkpoint(stored, parts=()).path
    assert path.is_relative_to(tmp_path / f"temporary/retake-{os.getuid()}")


# With processes and servers


PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from pipeline.model.checkpoint import CheckpointPin, open_checkpoint
pin, parts, cache, dies = json.loads(sys.argv[1])
if dies:
    from s3fs import S3FileSystem
    get_file = S3FileSystem.get_file
    def broken(self, source, target, *args, **kwargs):
        if source.endswith(dies):
            Path(target).write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        get_file(self, source, target, *args, **kwargs)
    S3FileSystem.get_file = broken
print(open_checkpoint(CheckpointPin(**pin), parts=parts, cache=cache).fingerprint)
"""


def rank(
    pin: CheckpointPin | None, parts: tuple[str, ...], cache: Path | None, dies: str = ""
) -> subprocess.Popen[str]:
    """A process that opens a checkpoint by its pin."""
    assert pin
    given = json.dumps([asdict(pin), parts, cache and str(cache), dies])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, given],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )


@pytest.fixture(scope="module")
def s3(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], list[str]]]:
    """A checkpoint at s3://models/5b; gives the requests since it was last asked."""
    log = tmp_path_factory.mktemp("s3") / "requests"
    with s3_server(log) as access, pytest.MonkeyPatch.context() as patch:
        for name, value in access.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3")
        fs.mkdir("models")
        fs.put(f"{checkpoints['5b']}/", "models/5b/", recursive=True)
        yield lambda: [log.read_text().splitlines(), log.write_text("")][0]  # type: ignore[list-item]


@pytest.mark.s3
def test_of_all_processes_of_a_node_one_fetches_a_file(
    s3: Callable[[], list[str]], checkpoints: dict[str, Path], cache: Path
) -> None:
    s3()
    pin = open_checkpoint("s3://models/5b", parts=(), cache=cache).pin
    looked = s3()
    assert pin
    assert pin.fingerprint == open_checkpoint(str(checkpoints["5b"])).fingerprint
    gets = [line.split() for line in looked if line.startswith("GET /models/5b/")]
    assert all("bytes=" in line[-1] for line in gets if line[1].endswith(".safetensors"))
    ranks = [rank(pin, EDITING_PARTS, cache) for _ in range(3)]
    assert {one.communicate(timeout=60)[0].strip() for one in ranks} == {pin.fingerprint}
    fetched = Counter(line.split()[1] for line in s3() if line.startswith("GET /models/5b/"))
    assert fetched == {f"/models/5b/{name}": 1 for name in (TRANSFORMER, VAE)}
    prompts = rank(pin, PROMPT_PARTS, cache)
    assert prompts.communicate(timeout=60)[0].strip() == pin.fingerprint
    fetched = Counter(line.split()[1] for line in s3() if line.startswith("GET /models/5b/"))
    assert fetched == {f"/models/5b/{TEXT_ENCODER}": 1}


@pytest.mark.s3
def test_a_process_that_is_killed_while_it_fetches_leaves_the_others_a_clean_start(
    s3: Callable[[], list[str]], cache: Path
) -> None:
    pin = open_checkpoint("s3://models/5b", parts=(), cache=cache).pin
    killed = rank(pin, EDITING_PARTS, cache, dies=TRANSFORMER)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert pin
    left = weights_in(cache / "checkpoints" / pin.version) - {VAE}
    assert any(name.startswith(TRANSFORMER) for name in left)
    assert all(name.endswith(".part") for name in left)
    for name in left:
        age(cache / "checkpoints" / pin.version / name)
    s3()
    info = open_checkpoint(pin, parts=EDITING_PARTS, cache=cache)
    assert weights_in(info.path) == {TRANSFORMER, VAE}


# On the Hub


@pytest.fixture
def hub(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({COMMITS[0]: copy})
    with hub_server(hub) as endpoint:
        place = "huggingface_hub.constants"
        monkeypatch.setattr(f"{place}.ENDPOINT", endpoint)
        monkeypatch.setattr(
            f"{place}.HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("RETAKE_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.mark.parametrize("prefix", ["", "hf://"])
def test_on_the_hub_a_driver_reads_parts_of_the_weights(hub: Hub, copy: Path, prefix: str) -> None:
    info = open_checkpoint(prefix + hub.name, parts=())
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
    assert info.pin
    assert info.pin.version == COMMITS[0]
    assert weights_in(info.path) == set()
    gets = hub.gets(".safetensors") + [r for r in hub.requests if ".safetensors bytes" in r]
    assert gets
    assert all("bytes=" in request for request in gets)
    assert not hub.leaked, "a token is for the Hub alone"


def test_a_rank_loads_the_commit_of_its_driver(hub: Hub, copy: Path, tmp_path: Path) -> None:
    pin = open_checkpoint(hub.name, parts=()).pin
    hub.commits[COMMITS[1]] = Path(shutil.copytree(copy, tmp_path / "new"))
    change_json(tmp_path / "new/scheduler/scheduler_config.json", beta_end=0.0125)
    hub.requests.clear()
    assert pin
    info = open_checkpoint(pin, parts=EDITING_PARTS)
    assert (info.path.name, info.scheduler["beta_end"]) == (COMMITS[0], 0.012)
    assert weights_in(info.path) == {TRANSFORMER, VAE}
    hub.requests.clear()
    assert open_checkpoint(pin, parts=EDITING_PARTS).path == info.path
    assert hub.requests == []
    assert open_checkpoint(hub.name, parts=()).scheduler["beta_end"] == 0.0125


def test_of_the_hub_the_configuration_alone_is_fetched_to_plan(hub: Hub) -> None:
    found = open_configuration(hub.name)
    assert {request.rpartition("/")[2].split()[0] for request in hub.gets("")} <= {
        "main", COMMITS[0], "model_index.json", "config.json", "scheduler_config.json",
        "tokenizer_config.json",
    }  # fmt: skip
    whole = open_checkpoint(hub.name, parts=())
    assert (found.family, found.transformer, found.vae) == (
        whole.family,
        whole.transformer,
        whole.vae,
    )
    assert (found.fingerprint, found.pin, found.parts) == ("", None, ())


def test_of_a_bucket_the_configuration_alone_is_fetched_to_plan(copy: Path, cache: Path) -> None:
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    found = open_configuration(in_memory(copy, "configuration"), cache=cache)
    assert found.path.is_relative_to(cache)
    assert (found.family, found.height, found.width) == ("5b", 64, 96)
    assert open_configuration(str(copy)).transformer == found.transformer
    (copy / "vae/config.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"lacks vae/config.json"):
        open_configuration(str(copy))


def test_of_all_processes_of_a_node_one_fetches_from_the_hub(hub: Hub) -> None:
    pin = open_checkpoint(hub.name, parts=()).pin
    hub.requests.clear()
    ranks = [rank(pin, EDITING_PARTS, None) for _ in range(3)]
    assert pin
    assert {one.communicate(timeout=60)[0].strip() for one in ranks} == {pin.fingerprint}
    place = f"GET /content/{COMMITS[0]}"
    assert sorted(hub.gets(".safetensors")) == [f"{place}/{TRANSFORMER}", f"{place}/{VAE}"]


def test_without_a_network_the_hubs_cache_is_opened(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = open_checkpoint(hub.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (online.path / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"of others")
    hub.requests.clear()
    assert open_checkpoint(hub.name, parts=()) == replace(online, parts=online.parts)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"model_index.json": "LoRA"}, "holds a LoRA .*fuse_lora"),
        ({"model_index.json": "WanPipeline"}, "it holds a WanPipeline"),
    ],
)
def test_what_is_no_checkpoint_on_the_hub_costs_no_weights(
    hub: Hub, copy: Path, change: dict[str, str], answer: str
) -> None:
    (kind,) = change.values()
    if kind == "LoRA":
        (copy / "model_index.json").unlink()
        (copy / "pytorch_lora_weights.safetensors").write_bytes(b"{}")
    else:
        change_json(copy / "model_index.json", _class_name=kind)
    with pytest.raises(UnsupportedCheckpoint, match=f"checkpoint '{hub.name}': .*{answer}"):
        open_checkpoint(hub.name)
    assert hub.gets(".safetensors") == []


def test_a_repository_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(
        UnsupportedCheckpoint, match="from the Hugging Face Hub it could not be had"
    ):
        open_checkpoint("someone/else")


def test_what_killed_processes_left_in_the_hubs_cache_is_removed(
    hub: Hub, copy: Path, tmp_path: Path
) -> None:
    open_checkpoint(hub.name, parts=())
    blobs, locks = (
        tmp_path / f"hub/{at}"
        for at in ("models--someone--CogVideoX/blobs", ".locks/models--someone--CogVideoX")
    )
    dead, alive = (blobs / f"{sha(copy / name)}.0123abcd.incomplete" for name in (VAE, TRANSFORMER))
    elsewhere = dead.with_name(dead.name.replace("0123abcd", "4567abcd"))
    for file in (dead, alive, elsewhere):
        file.write_bytes(b"half")
    age(dead)
    age(alive)
    with (locks / f"{alive.name.split('.')[0]}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        open_checkpoint(hub.name, parts=PROMPT_PARTS)
    assert (dead.exists(), alive.exists()) == (False, True)
    assert elsewhere.exists(), "where locks do not reach other nodes, one of them may write to it"
