"""The embedded checkpoint, and a job that shows what Retake does with it."""
