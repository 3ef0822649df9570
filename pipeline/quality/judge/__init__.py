"""The judge: a model that looks at source and edit and answers in words.

`Judge` asks one question, that of `prompt.txt`, of any image-text-to-text model that transformers
opens (`local.py`) or of an OpenAI-compatible server (`endpoint.py`), and reads the answer strictly
(`answer.py`). What goes wrong with one pair is part of its scores.
"""

from pipeline.quality.judge.judge import Judge as Judge
from pipeline.quality.judge.judge import fingerprint_of as fingerprint_of
