"""The program that a node runs: each of its checks, in a process as a node starts it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight import node
from cluster.preflight.findings import Answer, read_answer
from pipeline import __version__
from pipeline.model.checkpoint import open_checkpoint
from pipeline.storage import Folder
from tests.drawn_videos import draw_sound

CUDA = "__version__ = '2.9.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"
CPU = "__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
ROCM = "__version__ = '2.9.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n"
UNAVAILABLE = """
import types, warnings
def is_available():
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 11040)")
    return False
cuda = types.SimpleNamespace(is_available=is_available)
"""
TWO_GPUS = """
import types
cuda = types.SimpleNamespace(
    is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda number: "H100"
)
class Zeros:
    def __init__(self, count, device): self.device = device
    def cpu(self):
        if self.device == "cuda:1":
            raise RuntimeError(PROBLEM)
zeros = Zeros
"""


def answer_of(
    *, path: Path | None = None, soon: str = "", packages: Any = (), **checks: Any
) -> Answer:
    """What a node answers, with a folder of its own before the others on its path.

    Args:
        soon: the check that has a second, while the others have minutes.
    """
    deadlines = {name: 1.0 if name == soon else 200.0 for name in checks}
    request = {"packages": list(packages), "deadlines_s": deadlines, "checks": checks}
    searched = [str(path)] if path else []
    searched += [os.environ.get("PYTHONPATH", ""), str(Path(node.__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", Path(node.__file__).read_text()],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        cwd=path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(searched)},
    )
    return read_answer(done.stdout, "")


def test_a_node_says_what_is_installed_there_and_whether_a_clip_can_be_decoded(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.mp4").write_bytes(draw_sound())
    answer = answer_of(
        packages=["torch", "no-such-package"],
        decoding={},
        checkpoint={"uri": "embedded", "pin": asdict(open_checkpoint("embedded").pin)},
        video={"uri": str(tmp_path / "a.mp4")},
    )
    mine = node.installed(["torch", "no-such-package"])
    assert answer.installed == mine
    assert mine["version"] == __version__
    assert mine["packages"]["torch"]
    assert mine["packages"]["no-such-package"] is None
    assert answer.problems == {"decoding": None, "checkpoint": None, "video": None}


def test_the_check_imports_no_torch_where_there_are_no_gpus() -> None:
    program = (
        "import sys; from cluster.preflight import node; node.installed(['torch'])\n"
        "assert node.check_decoding() is None\n"
        "assert node.check_checkpoint('embedded', None) is None\n"
        "assert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("file", ["pipeline/__init__.py", "pipeline.py", "cluster.py"])
def test_other_packages_of_our_names_are_not_taken_for_ours(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    installed = answer_of(path=tmp_path).installed
    assert installed
    assert installed["version"] is None
    assert installed["error"].startswith("other packages have the names pipeline and cluster: ")
    assert f"{tmp_path}/" in installed["error"]


def test_folders_of_our_names_that_are_no_packages_hide_nothing(tmp_path: Path) -> None:
    for name in node.CODE:
        (tmp_path / name).mkdir()
    assert answer_of(path=tmp_path).installed == node.installed([])


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of storage that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_check_that_hangs_takes_no_other_answer_along(hanging: str) -> None:
    answer = answer_of(soon="video", video={"uri": f"{hanging}/a.mp4"}, decoding={})
    assert answer.problems == {
        "decoding": None,
        "video": f"its check gave no answer in 1 s. {node.LATE['video']}",
    }


def output_check(uri: str, **other: str) -> str | None:
    return node.check_output(uri, **{"theirs": ".a", "ours": ".b", "content": "same"} | other)


@pytest.mark.parametrize("uri", ["made", "memory://made"])
def test_a_node_reads_what_the_driver_wrote_and_writes_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(uri)
    folder.write(".a", b"same")
    assert output_check(uri) is None
    assert folder.read(".b") == b"same"
    assert "another file than this machine wrote" in str(output_check(uri, content="other"))
    folder.remove(".a")
    folder.remove(".b")


def test_a_local_folder_that_is_not_shared_is_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "READ_AGAIN_S", (0.0,))
    problem = str(output_check(str(tmp_path / "made")))
    assert "the folder is not shared" in problem
    assert "s3://bucket/folder" in problem
    assert not (tmp_path / "made").exists()
    assert "same endpoint, region and credentials" in str(output_check("memory://other"))


def test_a_new_file_that_is_seen_a_little_later_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_: float) -> None:
        Folder(str(tmp_path)).write(".a", b"same")

    monkeypatch.setattr(node.time, "sleep", pause)
    assert output_check(str(tmp_path)) is None


def test_an_output_that_a_node_may_only_read_is_refused(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write(".a", b"same")
    (tmp_path / "file").touch()
    problem = str(output_check(str(tmp_path), ours="file/b"))
    assert "(written on the node)" in problem
    assert "file/b" not in problem, "nodes with the same problem could not be grouped"


def test_a_checkpoint_that_the_node_lacks_or_has_otherwise_is_refused(tmp_path: Path) -> None:
    assert "there is no such folder" in str(node.check_checkpoint(str(tmp_path / "none"), None))
    pin = open_checkpoint("embedded").pin
    other = asdict(replace(pin, fingerprint="0" * 16))
    assert "holds another checkpoint" in str(node.check_checkpoint("embedded", other))


def test_a_video_that_only_the_driver_finds_is_refused_with_the_way_out(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.mp4")
    assert node.check_video(uri) == (
        f"{uri}: is not found there. This machine finds it: take a file system that all nodes "
        "mount at the same path, or object storage that all of them may read"
    )


def test_a_build_of_ffmpeg_that_cannot_write_edits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node, "CODEC", "no_such_codec")
    assert "PyAV does not work on the node: UnknownCodecError" in str(node.check_decoding())


def gpu_check(folder: Path, version: str, program: str, gpus: int = 2) -> str | None:
    """The check of GPUs on a node with another torch."""
    (folder / "torch").mkdir()
    (folder / "torch/version.py").write_text(f"from typing import Optional\n{version}")
    (folder / "torch/__init__.py").write_text(program)
    return answer_of(path=folder, gpus={"gpus": gpus}).problems["gpus"]


@pytest.mark.parametrize(
    ("version", "program", "expected"),
    [
        (CPU, "raise AssertionError('imported')", "2.9.0+cpu is built without CUDA, and Ray count"),
        (CUDA, "raise AssertionError('imported')", "2.9.0 is built for CUDA 12.8, and there is no"),
        (ROCM, UNAVAILABLE, "cannot use the 2 GPUs that Ray counts there: CUDA initialization: "),
        (ROCM, TWO_GPUS.replace("PROBLEM", "'no kernel image'"), "the GPU H100: RuntimeError: no"),
        (ROCM, TWO_GPUS.replace("PROBLEM", "'CUDA out of memory'"), None),
    ],
)
def test_a_torch_that_cannot_work_on_the_gpus_is_refused(
    tmp_path: Path, version: str, program: str, expected: str | None
) -> None:
    if version is CUDA and Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    problem = gpu_check(tmp_path, version, program)
    assert (problem is None) == (expected is None)
    assert str(expected) in str(problem)


def test_gpus_that_torch_does_not_see_are_counted(tmp_path: Path) -> None:
    problem = gpu_check(tmp_path, ROCM, TWO_GPUS, gpus=4)
    assert str(problem).startswith("torch 2.9.0+rocm6.4 sees 2 of the 4 GPUs that Ray counts")


class Driver:
    """A GPU driver that supports CUDA up to a version."""

    def __init__(self, version: int) -> None:
        self.version = version

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = self.version
        return 0


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [
        (11040, "12.8", True),
        (12020, "12.8", False),  # of the same major version
        (13000, "12.8", False),
        (12080, "13.0", True),
    ],
)
def test_a_driver_older_than_the_cuda_of_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch, driver: int, cuda: str, old: bool
) -> None:
    monkeypatch.setattr(node.ctypes, "CDLL", lambda _: Driver(driver))
    problem = node.driver_problem("torch 2.9.0", cuda)
    assert (problem is not None) == old
    have = f"{driver // 1000}.{driver % 1000 // 10}"
    assert not old or f"the NVIDIA driver there supports CUDA up to {have}. Update" in str(problem)
