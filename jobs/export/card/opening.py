"""What an export's card says of how to open it, by format."""

from __future__ import annotations

HOW_TO_OPEN = {
    "webdataset": """\
## How to open it

```python
import webdataset as wds

pairs = wds.WebDataset("train-{000000..000011}.tar", shardshuffle=False)  # as far as they go
for pair in pairs.decode():
    pair["source.mp4"], pair["edit.mp4"], pair["json"]["prompt"]
```""",
    "csv": """\
## How to open it

`train.csv` and `validation.csv` name files in this folder: `video` is the edit, `vace_video` its
source, `prompt` its prompt. `prompts.txt` and `videos.txt` are the training pairs as two lists.""",
    "huggingface": """\
## How to open it

```python
from datasets import Video, load_dataset

pairs = load_dataset("FOLDER")["train"]       # or its name on the Hub
for kind in ("source", "edit", "mask"):       # else they are decoded, by torchcodec
    pairs = pairs.cast_column(kind, Video(decode=False))
pairs[0]["edit"]["bytes"], pairs[0]["prompt"]
```""",
    "lance": """\
## How to open it

```python
import lance

pairs = lance.dataset("FOLDER")
pairs.to_table(columns=["key", "prompt"], filter="split = 'train'")
pairs.take_blobs("edit", indices=[0])[0].readall()  # the bytes of a video
```""",
}
