"""The validation windows of weights/sample/golden.json as ids, a line each.

    pip install sentencepiece
    python tests/golden/make_sample_windows.py ../shared/data/text/tinyshakespeare.txt > tests/golden/sample_windows.txt
"""

import json
import pathlib
import sys

import sentencepiece

sample = pathlib.Path(__file__).resolve().parents[2] / "weights" / "sample"
golden = json.loads((sample / "golden.json").read_text())
processor = sentencepiece.SentencePieceProcessor(model_file=str(sample / "tokenizer.model"))
text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
ids = processor.encode(text[golden["val_first_character"] :])
assert len(ids) == golden["val_token_count"] and ids[:16] == golden["val_first_ids"]
size = golden["val_window_tokens"]
for window in range(golden["val_windows"]):
    print(*ids[window * size : (window + 1) * size])
