"""Stored trajectories: any group reads what another wrote, and no damage goes unnoticed."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import fsspec
import pytest
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.errors import ErrorCode, RowError, StorageFailed, Trouble
from pipeline.storage import Folder
from pipeline.trajectories.index import (
    INDEX,
    TrajectoryDamaged,
    TrajectoryIndex,
    commit,
    digest,
    read_index,
    slice_of,
)
from pipeline.trajectories.reader import OtherSliceDamaged, TrajectoryReader
from pipeline.trajectories.writer import Dtype, ShardWriter
from tests.s3_server import s3_server

SHAPE = (2, 4, 6, 10)
LEVELS = 5


def entries(seed: int = 0, levels: int = LEVELS, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(levels, *shape, generator=torch.Generator().manual_seed(seed))


def store(
    folder: Folder,
    latents: Tensor,
    *,
    ranks: int = 3,
    key: str = "k",
    dtype: Dtype = "fp32",
    first_level: int = 0,
) -> TrajectoryIndex:
    """Write and commit as a group of so many ranks does."""
    shards = []
    for rank in range(ranks):
        writer = ShardWriter(folder, dtype, rank=rank, ranks=ranks, first_level=first_level)
        for entry in latents:
            writer.add(entry)
        shards.append(writer.store())
    f, c, h, w = latents.shape[1:]
    known = read_index(folder, key) if first_level else None
    index = (
        known.extended(shards, {"more": 1})
        if known
        else TrajectoryIndex(key=key, shape=(f, c, h, w), dtype=dtype, shards=tuple(shards))
    )
    commit(folder, index)
    return index


def read_all(folder: Folder, key: str = "k", ranks: int = 1) -> tuple[Tensor, list[int]]:
    """All levels as a group of so many ranks sees them, and the bytes that each rank fetched."""
    index = read_index(folder, key)
    assert index is not None
    parts: list[list[Tensor]] = []
    fetched = []
    for rank in range(ranks):
        own: list[Tensor] = []

        def gather(values: Tensor, counts: list[int], rank: int = rank, own: list = own) -> Tensor:
            assert len(values) == counts[rank]
            own.append(values[:-1])  # the last one says whether the rank's slice is damaged
            return torch.zeros(sum(counts), dtype=values.dtype)

        with TrajectoryReader(folder, index, rank=rank, ranks=ranks, gather=gather) as reader:
            levels = [reader.entry(level) for level in range(index.highest, -1, -1)]
            fetched.append(reader.bytes_read)
        parts.append(own or [level.flatten() for level in levels])
    whole = [torch.cat(slices) for slices in zip(*parts, strict=True)]
    return torch.stack(whole[::-1]).reshape(-1, *index.shape).float(), fetched


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as access:
        yield access


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    if request.param == "file":
        yield Folder(str(tmp_path / "trajectory"))
    elif request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdirs("trajectories", exist_ok=True)
        yield Folder(f"s3://trajectories/{tmp_path.name}")
    else:
        folder = Folder(f"memory://{tmp_path.name}/trajectory")
        yield folder
        folder.remove_folder("")


@pytest.mark.parametrize("readers", [1, 2, 4, 5])
@pytest.mark.parametrize("writers", [1, 3])
def test_what_some_ranks_wrote_others_read_bit_for_bit(
    folder: Folder, writers: int, readers: int
) -> None:
    latents = entries()
    store(folder, latents, ranks=writers)
    read, _ = read_all(folder, ranks=readers)
    assert torch.equal(read, latents)


def test_each_of_four_readers_fetches_a_quarter(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    latents = entries(shape=(3, 8, 12, 18))
    store(folder, latents, ranks=3)
    _, fetched = read_all(folder, ranks=4)
    quarter = latents.numel() * 4 / 4
    assert all(abs(f - quarter) <= 0.05 * quarter for f in fetched)
    assert sum(fetched) == latents.numel() * 4


def test_the_reader_gives_whole_levels_from_the_top_down_and_reads_ahead(folder: Folder) -> None:
    latents = entries(levels=9)
    index = store(folder, latents)
    with TrajectoryReader(folder, index, read_ahead=3) as reader:
        for level in range(8, -1, -1):
            assert torch.equal(reader.entry(level), latents[level])
            assert set(reader._ahead) == set(range(max(0, level - 2), level))
        before = reader.bytes_read
        assert torch.equal(reader.entry(1), latents[1])
        assert reader.bytes_read == before, "the level beside the last one was fetched again"


@pytest.mark.parametrize(("dtype", "worst"), [("fp32", 0.0), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_each_dtype_keeps_what_it_can(folder: Folder, dtype: Dtype, worst: float) -> None:
    latents = entries()
    store(folder, latents, dtype=dtype)
    read, _ = read_all(folder)
    assert (read - latents).abs().max() <= worst


def test_a_trajectory_is_extended_by_more_levels(folder: Folder) -> None:
    latents = entries(levels=8)
    store(folder, latents[:5], ranks=1)
    index = store(folder, latents[5:], ranks=2, first_level=5)
    assert index.highest == 7
    assert index.about == {"more": 1}
    assert torch.equal(read_all(folder)[0], latents)


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    latents = entries()
    index = store(Folder(str(tmp_path)), latents, ranks=2)
    tensors = load_safetensors((tmp_path / index.shards[1].file).read_bytes())
    assert sorted(tensors) == [f"level_{i:04d}" for i in range(LEVELS)]
    first, last = (latents[0].numel() * c // 48 for c in slice_of(1, 2))
    assert torch.equal(tensors["level_0003"], latents[3].flatten()[first:last])


def test_shards_without_an_index_are_nothing(folder: Folder) -> None:
    writer = ShardWriter(folder, "fp32")
    writer.add(entries()[0])
    writer.store()
    assert read_index(folder, "k") is None


def test_an_index_that_lacks_a_rank_is_not_committed(folder: Folder) -> None:
    index = store(folder, entries(), ranks=3)
    with pytest.raises(ValueError, match="whole only up to"):
        commit(folder, replace(index, shards=index.shards[:2]))


def test_two_writers_of_one_trajectory_leave_one_valid_trajectory(folder: Folder) -> None:
    """Their shards and their commits interleave; the last commit is whole with its own shards."""
    ours, theirs = entries(1), entries(2)
    shards: dict[int, list] = {1: [], 2: []}
    for rank in range(2):
        for which, latents in ((1, ours), (2, theirs)):
            writer = ShardWriter(folder, "fp32", rank=rank, ranks=2)
            for entry in latents:
                writer.add(entry)
            shards[which].append(writer.store())
    for which in (2, 1):
        commit(folder, TrajectoryIndex("k", SHAPE, "fp32", tuple(shards[which])))
    assert torch.equal(read_all(folder)[0], ours)


def test_values_that_are_not_finite_are_not_stored(folder: Folder) -> None:
    writer = ShardWriter(folder, "fp16")
    writer.add(torch.full(SHAPE, 1e6))
    with pytest.raises(ValueError, match="not finite in fp16"):
        writer.store()


def shard_files(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*.safetensors"))


def flip(place: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = shard_files(path)[1]
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)

    return damage


def cut(length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = shard_files(path)[0]
        file.write_bytes(file.read_bytes()[:length])

    return damage


def edit_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """A changed index whose own digest was not made anew."""

    def damage(path: Path) -> None:
        document = json.loads((path / INDEX).read_text())
        change(document["body"])
        (path / INDEX).write_text(json.dumps(document))

    return damage


def sign_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """A changed index with a digest of its own."""

    def damage(path: Path) -> None:
        body = json.loads((path / INDEX).read_text())["body"]
        change(body)
        signed = digest(json.dumps(body, sort_keys=True).encode(), 64)
        (path / INDEX).write_text(json.dumps({"digest": signed, "body": body}))

    return damage


def write_index(data: bytes) -> Callable[[Path], None]:
    return lambda path: (path / INDEX).write_bytes(data) and None


def swap(path: Path) -> None:
    a, b = shard_files(path)[:2]
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def remove(number: int) -> Callable[[Path], None]:
    return lambda path: shard_files(path)[number].unlink()


def another_videos_index(path: Path) -> None:
    other = path.parent / "other"
    store(Folder(str(other)), entries(9), key="other")
    (path / INDEX).write_bytes((other / INDEX).read_bytes())


def another_videos_index_and_shards(path: Path) -> None:
    another_videos_index(path)
    for file in (path.parent / "other").glob("shard-*"):
        (path / file.name).write_bytes(file.read_bytes())


def another_videos_shard(path: Path) -> None:
    other = path.parent / "other"
    store(Folder(str(other)), entries(9))
    shard_files(path)[0].write_bytes(shard_files(other)[0].read_bytes())


def stale_index(path: Path) -> None:
    """The index of an earlier inversion, whose shards were deleted since."""
    old = (path / INDEX).read_bytes()
    for file in shard_files(path):
        file.unlink()
    store(Folder(str(path)), entries(3))
    (path / INDEX).write_bytes(old)


def rolled_levels(path: Path) -> None:
    """All bytes are there, but every level stands one place further."""
    file = shard_files(path)[0]
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    row = (len(data) - header) // LEVELS
    file.write_bytes(data[:header] + data[header + row :] + data[header : header + row])


def zeroed(path: Path) -> None:
    file = shard_files(path)[2]
    file.write_bytes(bytes(len(file.read_bytes())))


def swapped_chunks(path: Path) -> None:
    """Two chunks of one level changed places."""
    file = shard_files(path)[0]
    data = bytearray(file.read_bytes())
    data[-40:-20], data[-20:] = data[-20:], data[-40:-20]
    file.write_bytes(data)


def appended(path: Path) -> None:
    file = shard_files(path)[0]
    file.write_bytes(file.read_bytes() + b"\0")


def text_instead(path: Path) -> None:
    file = shard_files(path)[0]
    file.write_bytes(b"<html>" * 100)


def flipped_index(part: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray((path / INDEX).read_bytes())
        data[int(part * len(data))] ^= 1
        (path / INDEX).write_bytes(data)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the first value": flip(-2000),
    "a flipped bit in the last value": flip(-1),
    "a flipped bit in the middle": flip(-900),
    "a flipped sign bit": flip(-5),
    "the first shard is missing": remove(0),
    "the last shard is missing": remove(2),
    "two shards are swapped": swap,
    "a shard is cut by one byte": cut(-1),
    "a shard is cut in half": cut(1000),
    "a shard is empty": cut(0),
    "a shard is cut inside its header": cut(20),
    "a shard is one byte longer": appended,
    "a shard is zeroed": zeroed,
    "a shard is an error page": text_instead,
    "a shard is another video's": another_videos_shard,
    "the levels of a shard are rolled": rolled_levels,
    "two chunks of a shard are swapped": swapped_chunks,
    "the index is another video's": another_videos_index,
    "the index and the shards are another video's": another_videos_index_and_shards,
    "the index is stale": stale_index,
    "the index is empty": write_index(b""),
    "the index is not JSON": write_index(b"PAR1"),
    "the index is a JSON list": write_index(b"[]"),
    "the index is an empty object": write_index(b"{}"),
    "the index is cut": lambda p: (p / INDEX).write_bytes((p / INDEX).read_bytes()[:-30]) and None,
    "a flipped bit early in the index": flipped_index(0.3),
    "a flipped bit late in the index": flipped_index(0.8),
    "the index says another shape": edit_index(lambda b: b["shape"].reverse()),
    "the index says another dtype": edit_index(lambda b: b.update(dtype="bf16")),
    "the index lists its shards in another order": edit_index(lambda b: b["shards"].reverse()),
    "the index lacks a shard": edit_index(lambda b: b["shards"].pop()),
    "the index names a shard elsewhere": edit_index(
        lambda b: b["shards"][0].update(file="../../x.safetensors")
    ),
    "the index names an unknown dtype": sign_index(lambda b: b.update(dtype="fp8")),
    "the index has a shape of three sizes": sign_index(lambda b: b.update(shape=[2, 4, 60])),
    "the index has a size that is no number": sign_index(lambda b: b.update(shape=["2", 4, 6, 1])),
    "the index has an offset that is no number": sign_index(
        lambda b: b["shards"][0].update(data_offset="8")
    ),
    "the index is nested very deeply": write_index(b"[" * 100_000),
    "the index is of another format": edit_index(lambda b: b.update(format=99)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    folder = Folder(str(tmp_path / "trajectory"))
    store(folder, entries())
    assert torch.equal(read_all(folder)[0], entries())
    DAMAGES[damage](tmp_path / "trajectory")
    with pytest.raises(TrajectoryDamaged, match=re.escape(str(tmp_path))):
        read_all(folder)


def test_there_are_thirty_ways_of_damage() -> None:
    assert len(DAMAGES) >= 30


@pytest.mark.parametrize("damaged", [None, 0, 1, 2])
def test_ranks_that_exchange_their_slices_all_have_the_whole_or_all_stop(
    tmp_path: Path, damaged: int | None
) -> None:
    folder, latents, ranks = Folder(str(tmp_path)), entries(), 3
    index = store(folder, latents, ranks=ranks)
    if damaged is not None:
        file = tmp_path / index.shards[damaged].file
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    slices: list[Tensor] = [torch.empty(0)] * ranks
    everyone = Barrier(ranks, timeout=60)

    def read(rank: int) -> Tensor | str:
        def gather(values: Tensor, counts: list[int]) -> Tensor:
            slices[rank] = values
            everyone.wait()
            joined = torch.cat(slices)
            everyone.wait()
            assert [len(values) for values in slices] == counts
            return joined

        with TrajectoryReader(folder, index, rank=rank, ranks=ranks, gather=gather) as reader:
            try:
                return torch.stack([reader.entry(level) for level in range(LEVELS - 1, -1, -1)])
            except OtherSliceDamaged:
                return "another's"
            except TrajectoryDamaged:
                return "mine"

    with ThreadPoolExecutor(ranks) as pool:
        made = list(pool.map(read, range(ranks)))
    for rank, found in enumerate(made):
        if damaged is None:
            assert isinstance(found, Tensor)
            assert torch.equal(found, latents.flip(0))
        else:
            assert found == ("mine" if rank == damaged else "another's")


def test_a_reader_that_is_alone_asks_no_others(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    index = store(folder, entries())

    def gather(values: Tensor, counts: list[int]) -> Tensor:
        raise AssertionError("there is nobody to ask")

    with TrajectoryReader(folder, index, gather=gather) as reader:
        assert torch.equal(reader.entry(2), entries()[2])


def test_damage_in_one_ranks_slice_is_raised_on_every_rank(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    index = store(folder, entries(), ranks=2)
    flip(-1)(tmp_path)
    sent: list[Tensor] = []
    for rank in (1, 0):  # the second rank has the damage; the first learns of it

        def gather(values: Tensor, counts: list[int]) -> Tensor:
            sent.append(values)
            return torch.cat([values, sent[0]]) if len(sent) > 1 else torch.cat([values, values])

        reader = TrajectoryReader(folder, index, rank=rank, ranks=2, gather=gather)
        with reader, pytest.raises(TrajectoryDamaged, match="altered|another rank's slice"):
            reader.entry(LEVELS - 1)


def test_storage_that_fails_one_rank_fails_the_row_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    index = store(folder, entries(), ranks=2)
    read_range = Folder.read_range

    def busy(self: Folder, name: str, start: int, end: int) -> bytes:
        if name == index.shards[1].file:
            raise StorageFailed(name, Trouble(ErrorCode.STORAGE_BUSY, "is busy", temporary=True))
        return read_range(self, name, start, end)

    monkeypatch.setattr(Folder, "read_range", busy)
    sent: list[Tensor] = []
    for rank, text in ((1, "is busy"), (0, "another rank of the group could not read")):

        def gather(values: Tensor, counts: list[int]) -> Tensor:
            sent.append(values)
            return torch.cat([values, sent[0]]) if len(sent) > 1 else torch.cat([values, values])

        reader = TrajectoryReader(folder, index, rank=rank, ranks=2, gather=gather)
        with reader, pytest.raises(RowError, match=text) as caught:
            reader.entry(LEVELS - 1)
        assert caught.value.code == ErrorCode.STORAGE_BUSY


def test_a_trajectory_of_the_clean_latent_alone_is_one(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    store(folder, entries(levels=1))
    index = read_index(folder, "k")
    assert index is not None
    assert index.highest == 0


def test_an_index_of_an_older_version_has_no_frames_and_no_rate(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    store(folder, entries())
    document = json.loads((tmp_path / INDEX).read_text())
    del document["body"]["frames"], document["body"]["fps"]
    document["digest"] = digest(json.dumps(document["body"], sort_keys=True).encode(), 64)
    (tmp_path / INDEX).write_text(json.dumps(document))
    index = read_index(folder, "k")
    assert index is not None
    assert (index.frames, index.fps) == (0, 0.0)
