"""A checkpoint on the Hugging Face Hub, in the local cache that all its users share."""

from __future__ import annotations

import fcntl
import glob
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.layout import HASHED, INDEX, PUBLISHED, did_you_mean, what_it_is
from pipeline.model.folder.node import CheckpointPin, NoRanges, Range, Remote, abandoned

_SHARD = "-?????-of-?????.safetensors"
SMALL_FILES = ("*.json", "*.model")
HUB_FILES = (
    *SMALL_FILES,
    *(
        f"{stem}{ending}"
        for stem in (
            "transformer/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "text_encoder/model",
        )
        for ending in (".safetensors", _SHARD)
    ),
)
"""What is fetched from the Hub: what is loaded. No variants, no pickles, no pictures."""
AT_ONCE = 16
"""Requests for parts of files at the same time."""


class OnHub(Remote):
    """A repository of the Hub at one commit."""

    VARIABLE: ClassVar[str] = "HF_HOME"

    @classmethod
    def find(cls, name: str, cache: Path) -> OnHub:
        """The repository at the commit that its main branch has now.

        Without a network it is what the local cache has of it.

        Raises:
            UnsupportedCheckpoint: there is none, or it holds no checkpoint.
        """
        from huggingface_hub import snapshot_download

        with _as_messages(name):
            # Also what the library remembers of the branch, for a start without a network.
            folder = Path(snapshot_download(name, allow_patterns=[INDEX]))
            files = _listing(name, folder)
            if INDEX not in files:
                raise UnsupportedCheckpoint(what_it_is(name, files, above=False))
        sizes = {file: size for file, size in files.items() if _is_loaded(file)}
        return cls(name, folder.name, sizes, cache)

    @classmethod
    def pinned(cls, pin: CheckpointPin, cache: Path) -> OnHub:
        return cls(pin.uri, pin.version, pin.sizes, cache)

    @property
    def folder(self) -> Path:
        return self._repository / "snapshots" / self.version

    @property
    def locks(self) -> Path:
        return self._repository.parent / ".locks" / self._repository.name

    @property
    def _repository(self) -> Path:
        """Where the Hub's own cache has the repository."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.uri, repo_type="model")

    def copy(self, names: Collection[str]) -> None:
        from huggingface_hub import snapshot_download

        with _as_messages(self.uri):
            snapshot_download(
                self.uri, revision=self.version, allow_patterns=[glob.escape(n) for n in names]
            )

    def remove_leftovers(self, names: Collection[str]) -> None:
        """The Hub's library locks a file while it fetches it: where no one does, what is there of
        it is of a process that was killed."""
        for file in filter(abandoned, (self._repository / "blobs").glob("*.incomplete")):
            lock = self.locks / f"{file.name.split('.')[0]}.lock"
            with suppress(OSError), lock.open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        with _as_messages(self.uri), ThreadPoolExecutor(AT_ONCE) as pool:
            # Each file has an address at a content network, which is asked for once.
            pages = {
                one.name: hf_hub_url(self.uri, one.name, revision=self.version) for one in ranges
            }
            found = pool.map(lambda page: get_hf_file_metadata(page).location, pages.values())
            addresses = dict(zip(pages, found, strict=True))

            def read_one(one: Range) -> bytes:
                address = addresses[one.name]
                own = urlsplit(address).netloc == urlsplit(pages[one.name]).netloc
                wanted = {"Range": f"bytes={one.first}-{one.last - 1}"}
                headers = (build_hf_headers() if own else {}) | wanted
                answer = http_backoff("GET", address, headers=headers)
                hf_raise_for_status(answer)
                if len(answer.content) != one.last - one.first:
                    raise NoRanges(f"{one} gave {len(answer.content)} bytes")
                return bytes(answer.content)

            return list(pool.map(read_one, ranges))


def is_hub_name(uri: str) -> bool:
    """Whether a location that is no local folder has the form `owner/name`."""
    return uri.count("/") == 1 and not uri.startswith((".", "/", "~")) and all(uri.split("/"))


def _is_loaded(file: str) -> bool:
    return file.endswith(HASHED) and any(fnmatch(file, pattern) for pattern in HUB_FILES)


def _listing(name: str, folder: Path) -> dict[str, int]:
    """The files of a commit with their sizes; without a network, those that are here."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(name, revision=folder.name, files_metadata=True)
        return {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    except Exception:
        here = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in here}
        if not found:
            raise
        return found


@contextmanager
def _as_messages(name: str) -> Iterator[None]:
    try:
        yield
    except (UnsupportedCheckpoint, NoRanges):
        raise
    except Exception as error:
        meant = "" if name in PUBLISHED else did_you_mean(name.rpartition("/")[2])
        raise UnsupportedCheckpoint(
            f"there is no such folder here, and from the Hugging Face Hub it could not be had"
            f"{meant}: {error}"
        ) from error
