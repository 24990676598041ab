"""Training as a shell sees it: vocabularies.

    python3 tests/apps/train_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import json
import sys
import unittest

from program import run, Folder

TEXT = "".join(f"ROMEO:\nBut soft, what light is {i * 7919 % 101}? It is the east — naïve!\n\n" for i in range(300))


class Vocabulary(Folder):
    def train(self, *args):
        result = run("tokenizer", "train", *args)
        self.assertEqual((result.returncode, result.stdout), (0, ""), result.stderr)
        return result.stderr

    def test_every_type_gives_back_its_text(self):
        text = self.file("text.txt", TEXT)
        sample = "ROMEO:\nIt is the  east, 42 — naïve"
        for kind, files, size in (("bpe", ["merges.txt", "vocab.json"], 300), ("unigram", ["tokenizer.model"], 300),
                                  ("sp-bpe", ["tokenizer.model"], 310), ("char", ["meta.json"], None)):
            out = self.folder / kind
            said = self.train("--type", kind, "--input", text, "--output", out, *(["--vocab-size", size] if size else []))
            self.assertEqual(sorted(each.name for each in out.iterdir()), files)
            self.assertIn(f"{size or len(set(TEXT))} tokens", said)
            ids = run("tokenize", "--tokenizer", out, "--ids", sample).stdout
            self.assertEqual(run("detokenize", "--tokenizer", out, "--raw-bytes", stdin=ids).stdout, sample)
            if size:
                self.assertLess(len(ids.split()), len(sample))

    def test_documents_of_files_lines_and_folders(self):
        halves = [TEXT[:len(TEXT) // 2], TEXT[len(TEXT) // 2:]]
        lines = "\n".join(json.dumps({"text": half, "source": i}) for i, half in enumerate(halves))
        (self.folder / "in" / "deep").mkdir(parents=True)
        self.file("in/a.txt", "zebra zebra zebra")
        self.file("in/README", "not read")
        self.file("in/deep/b.jsonl", '{"text":"quagga quagga"}\n\n{"text":"zebra quagga"}\n')
        files = [self.file(f"{i}.txt", half) for i, half in enumerate(halves)]
        self.train("--input", files[0], "--input", files[1], "--output", self.folder / "whole", "--vocab-size", 290)
        self.train("--input", self.file("t.jsonl", lines), "--output", self.folder / "parts", "--vocab-size", 290)
        self.assertEqual(*((self.folder / each / "merges.txt").read_text() for each in ("whole", "parts")))
        said = self.train("--output", self.folder / "both", "--vocab-size", 1000, self.folder / "in")
        merges = (self.folder / "both" / "merges.txt").read_text()
        self.assertIn("Ġ quagga\n", merges)
        self.assertNotIn("not", merges)
        self.assertIn("fewer than --vocab-size 1000", said)

    def test_what_is_refused(self):
        out = self.folder / "out"
        text = self.file("text.txt", TEXT)
        for code, args, says in ((2, ["--output", out], "--input"), (2, ["--input", text], "--output"),
                                 (2, ["--input", text, "--output", out, "--type", "wordpiece"], "one of bpe, unigram"),
                                 (2, ["--input", text, "--output", out, "--vocab-size", 256], "expected 257 to"),
                                 (2, ["--input", text, "--output", out, "--type", "char", "--vocab-size", 65], "--vocab-size"),
                                 (2, ["--input", text, "--output", out, "--type", "unigram", "--vocab-size", 9], "SentencePiece"),
                                 (3, ["--input", self.folder / "none", "--output", out], "none"),
                                 (3, ["--input", self.folder / "empty", "--output", out], "*.txt or *.jsonl"),
                                 (7, ["--input", self.file("none.txt", ""), "--output", out], "expected text, got none"),
                                 (7, ["--input", self.file("bad.txt", b"ab\xff"), "--output", out], "offset 2"),
                                 (7, ["--input", self.file("bad.jsonl", '{"text":"a"}\n{"txt":"b"}'), "--output", out], "line 2"),
                                 (8, ["--input", text, "--output", text], "text.txt")):
            (self.folder / "empty").mkdir(exist_ok=True)
            self.fails(code, "tokenizer", "train", *args, says=says)
            self.assertFalse(out.exists())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
