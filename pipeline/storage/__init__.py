"""The one seam to storage: files and folders at a path or at any fsspec URI.

What fails for a while is tried again (`patience`); what an exception means stands in `trouble`.
"""

from pipeline.storage.files import check_file, is_folder, keeping, local_copy, open_file
from pipeline.storage.folder import Folder, write_file
from pipeline.storage.listing import find_all
from pipeline.storage.parsing import from_json
from pipeline.storage.patience import patiently, wait_long
from pipeline.storage.systems import join, neighbour, split, write_object
from pipeline.storage.trouble import explain

__all__ = [
    "Folder",
    "check_file",
    "explain",
    "find_all",
    "from_json",
    "is_folder",
    "join",
    "keeping",
    "local_copy",
    "neighbour",
    "open_file",
    "patiently",
    "split",
    "wait_long",
    "write_file",
    "write_object",
]
