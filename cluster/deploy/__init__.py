"""Files that bring up machines for a job: one function for each kind of target.

`needs.py` says what a job asks for, `options.py` what a user says beside it, `targets.py` lists the
targets. A target is a function from `Needs` to texts by file name. Nothing here imports torch or
Ray, and nothing writes a secret: files name the environment variables that hold them.
"""
