"""Faults into a real `retake run`: kills, stops, no memory, no disk, no storage, at drawn moments.

`test_faults.py` is the short form; `make soak` is the long one (`soak.py`).
"""
