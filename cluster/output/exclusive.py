"""Files that only one of several writers makes, on any storage."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress

from pipeline.storage import Folder, write_object

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""What a file system without hard links answers."""


def create(folder: Folder, name: str, data: bytes) -> bool:
    """Write a file where there is none yet; of several that try at once, one does.

    Object storage is asked for it: S3 by `If-None-Match`, Google Cloud Storage by the generation 0.
    Where a storage knows no such thing, the file is looked at before and after: two that write in
    the same instant may both believe then that they did, until they look again.

    Args:
        data: unlike what any other writer has, so that its file is known to be ours.

    Returns:
        Whether the file is ours.
    """
    if folder.is_local:
        return _create_local(folder.path(name), data)
    if _read(folder, name) is None:
        try:
            write_object(folder.fs, folder.path(name), data, mode="create")
        except Exception as error:  # each storage has its own answer to one who is late
            if not isinstance(error, FileExistsError) and _read(folder, name) is None:
                raise
    # An answer that got lost makes the client ask again, which is refused then; so this look.
    return _read(folder, name) == data


def _read(folder: Folder, name: str) -> bytes | None:
    folder.fs.invalidate_cache()
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def _create_local(path: str, data: bytes) -> bool:
    """Make a link, which is exclusive over NFS too; a plain exclusive file where there are none."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    scratch = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex[:8]}"
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)
        except FileExistsError:
            return os.stat(scratch).st_nlink == 2  # NFS may have lost the answer to the first try
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _open_exclusive(path, data)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
    return True


def _open_exclusive(path: str, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True
