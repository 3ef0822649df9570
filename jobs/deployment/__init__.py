"""`retake deploy`: a job and what its user chose, as files of a target."""

from jobs.deployment.files import Written, write_files

__all__ = ["Written", "write_files"]
