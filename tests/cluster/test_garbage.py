"""What `retake gc` deletes, and what it leaves."""

from pathlib import Path

from cluster.garbage import collect_garbage
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX
from tests.cluster.test_results import a_result, store
from tests.pipeline.trajectories.test_trajectory import entries
from tests.pipeline.trajectories.test_trajectory import store as store_trajectory


def test_it_deletes_what_no_result_names_and_only_that(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for key in ("done", "partly", "hung", "stale"):
        output.write(f"trajectories/{key}/index.json", b"{}")
        output.write(f"trajectories/{key}/shard.safetensors", b"x" * 100)
    store(
        output,
        "r1",
        a_result("a", "1", trajectory="done"),
        a_result("b", "1", trajectory="partly"),
        a_result("b", "2", "failed", trajectory="partly"),
        a_result("c", "1", trajectory="hung"),
        a_result("c", "2", "quarantined", trajectory="hung"),
    )
    assert collect_garbage(output, "always") == {"stale": 102}
    assert not (tmp_path / "trajectories/stale").exists()
    assert collect_garbage(output, "always") == {}
    assert collect_garbage(output, "until_done") == {"done": 102}
    assert collect_garbage(output, "never") == {}
    assert output.list("trajectories") == [
        "trajectories/hung/index.json",
        "trajectories/hung/shard.safetensors",
        "trajectories/partly/index.json",
        "trajectories/partly/shard.safetensors",
    ]


def test_it_deletes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    folder = output.child("trajectories/mine")
    store_trajectory(folder, entries(), key="mine")
    named = folder.list()
    temporary = tmp_path / "trajectories/mine/.shard-00000.safetensors.1a2b3c4d"
    temporary.write_bytes(b"x" * 11)
    store(output, "r1", a_result("mine", "1", trajectory="mine"))
    assert collect_garbage(output, "always") == {"mine": 11}
    assert not temporary.exists()
    assert folder.list() == named


def test_it_deletes_shards_that_no_index_names(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    folder = output.child("trajectories/mine")
    store_trajectory(folder, entries(), key="mine")
    named = set(folder.list())
    folder.write("shard-of-a-killed-group.safetensors", b"x" * 9)
    output.write("trajectories/uncommitted/shard.safetensors", b"x" * 7)
    output.write(f"trajectories/damaged/{INDEX}", b"not an index")
    output.write("trajectories/damaged/shard.safetensors", b"x" * 5)
    keys = ("mine", "uncommitted", "damaged")
    store(output, "r1", *(a_result(key, "1", trajectory=key) for key in keys))
    assert collect_garbage(output, "always") == {"mine": 9, "uncommitted": 7}
    assert set(folder.list()) == named
    assert len(output.list("trajectories/damaged")) == 2
