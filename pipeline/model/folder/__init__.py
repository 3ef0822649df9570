"""A checkpoint's folder: where it lies, and whether all of it is there and fits together.

None of this imports torch, diffusers or transformers: `retake validate` and every start of a job
read it. Each module raises `UnsupportedCheckpoint` with a text that names a file by its name inside
the folder, what was found, what was expected and the way out.
"""
