"""Every read, write, flush, rename, map and thread start of a run fails in turn: one clear error or none, and nothing is lost.

    python3 tests/faults/faults_test.py INKLING SOURCE_DIR FAIL_CALL_LIBRARY [TestCase.test_name ...]
"""

import array
import errno
import json
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "apps"))
from program import run, Folder

if os.access("/dev/shm", os.W_OK):
    tempfile.tempdir = "/dev/shm"  # hundreds of runs flush their files; here that is free
LIBRARY = os.path.abspath(sys.argv[3])
FAULTS = {"read": [errno.EIO], "write": [errno.ENOSPC], "fsync": [errno.EIO], "rename": [errno.EIO], "mmap": [errno.ENOMEM],
          "thread": [errno.EAGAIN]}
HARMLESS = {"read": [errno.EINTR, 0], "write": [errno.EINTR, 0]}  # 0: one byte instead of all
EXPECTED = {3, 5, 8}  # file, memory, output
TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\n\n" * 30
MOST = 500  # calls of one kind, by far


def same_log(folder):
    """log.jsonl but for what depends on the clock."""
    return [{k: v for k, v in json.loads(line).items() if k != "tok_per_s"} for line in (folder / "log.jsonl").read_text().splitlines()]


class Faults(Folder):
    def with_fault(self, call, at, error, *args):
        """The result, or None when there was no such call any more."""
        mark = self.folder / "mark"
        mark.unlink(missing_ok=True)
        result = run(*args, env={"LD_PRELOAD": LIBRARY, "FAIL_CALL": call, "FAIL_AT": str(at), "FAIL_ERRNO": str(error), "FAIL_MARK": str(mark),
                                 "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"})
        return result if mark.exists() else None

    def each_fault(self, faults, *args, prepare=lambda: None):
        """Yields (what failed, the result) for the first, second, … call of each kind until a run has no more."""
        for call, errors in faults.items():
            for error in errors:
                for at in range(1, MOST):
                    prepare()
                    result = self.with_fault(call, at, error, *args)
                    if result is None:
                        break
                    yield f"{call} {at}, {os.strerror(error) if error else 'one byte'}", result
                self.assertLess(at, MOST - 1, call)

    def clean(self, what, result):
        """One clear error, or success; how many of either."""
        self.assertIn(result.returncode, {0} | EXPECTED, (what, result.stderr))
        errors = [line for line in result.stderr.splitlines() if line.startswith("inkling: error: ")]
        # The write that fails may be the one of the error or of a note: there is nothing to be said then.
        self.assertEqual(len(errors), 0 if result.returncode == 0 else 1, (what, result.stderr))
        for line in errors:
            self.assertRegex(line, r"error: .+: .+", what)
        return result.returncode

    def check_answers(self, *args):
        """Faults in a command that only reads and prints."""
        expected = run(*args)
        self.assertEqual(expected.returncode, 0, expected.stderr)
        codes = {}
        for what, result in self.each_fault(FAULTS, *args):
            code = self.clean(what, result)
            codes.setdefault(what.split()[0], set()).add(code)
            if code == 0:
                self.assertEqual(result.stdout, expected.stdout, what)
            elif not what.startswith("write"):
                self.assertEqual(result.stdout, "", what)
            self.assertTrue(expected.stdout.startswith(result.stdout), what)
        for what, result in self.each_fault(HARMLESS, *args):
            self.assertEqual((result.returncode, result.stdout), (0, expected.stdout), (what, result.stderr))
        return codes

    def test_generate(self):
        codes = self.check_answers("generate", "-p", "ROMEO:", "-n", 3, "--temperature", 0, "-t", 3)
        self.assertIn(3, codes["read"])
        self.assertIn(8, codes["write"])
        self.assertIn(5, codes["thread"])
        self.assertTrue({3, 5} & codes["mmap"])

    def test_generate_from_jsonl(self):
        prompts = self.file("p.jsonl", '{"id":1,"prompt":"ROMEO:"}\n{"id":2,"prompt":"JULIET:"}\n')
        codes = self.check_answers("generate", "--prompts", prompts, "-n", 2, "-s", 1, "--output", "jsonl", "-q")
        self.assertEqual(codes["write"], {8})

    def test_inspect_and_tokenize(self):
        # A tokenizer that cannot be read is one of the facts that `inspect` reports.
        codes = {self.clean(what, result) for what, result in self.each_fault(FAULTS, "inspect", "--output", "json", "-q")}
        self.assertLessEqual({0, 3, 8}, codes)
        self.assertEqual(self.check_answers("tokenize", "--json", "ROMEO:")["write"], {8})

    def test_eval(self):
        text = self.file("text.txt", TEXT)
        self.assertEqual(self.check_answers("eval", "--perplexity", text, "--output", "json", "-t", 2, "-q")["write"], {8})
        texts = self.file("texts.jsonl", '{"id":1,"text":"ROMEO: I come."}\n')
        self.assertEqual(self.check_answers("eval", "--score", texts, "--output", "jsonl", "-t", 2, "-q")["write"], {8})

    def test_packed_weights_for_the_next_start_are_whole_or_not_there(self):
        model, cache = self.folder / "model", self.folder / "cache"
        self.big_model(model)
        args = ["generate", "-m", model, "--prompts", self.file("p.jsonl", '{"ids":[1,2]}\n'), "-n", 2, "-s", 1, "--temperature", 0, "-t", 1,
                "--output", "jsonl", "--cache-dir"]
        expected = run(*args, "none").stdout
        self.assertTrue(expected)
        empty = lambda: shutil.rmtree(cache, ignore_errors=True)
        kept = 0
        for what, result in self.each_fault({"write": [errno.ENOSPC], "fsync": [errno.EIO], "rename": [errno.EIO]}, *args, cache, prepare=empty):
            self.assertIn(self.clean(what, result), {0, 8}, what)
            if not what.startswith("write"):  # a cache that cannot be kept is a warning
                self.assertEqual((result.returncode, result.stdout), (0, expected), (what, result.stderr))
            names = os.listdir(cache) if cache.exists() else []
            self.assertEqual([name for name in names if not name.endswith(".packed")], [], what)
            # What fails after the renaming, the flush of the folder, fails in silence: the file is there.
            self.assertTrue(names or "for the next start: " in result.stderr or what.startswith("write"), (what, result.stderr))
            again = run(*args, cache)
            self.assertEqual((again.returncode, again.stdout), (0, expected), what)
            kept += 1
        self.assertGreater(kept, 4)
        met = 0
        for what, result in self.each_fault({"read": [errno.EIO], "mmap": [errno.ENOMEM]}, *args, cache):  # from what was kept
            met += 1
            self.assertIn(self.clean(what, result), {0, 3, 5}, what)
            self.assertIn(result.stdout, {"", expected}, what)
        self.assertGreater(met, 2)

    def big_model(self, folder):
        """More than 16 MiB of weights, all alike: what is smaller is not kept."""
        shapes = {"wte.weight": [48, 768], "wpe.weight": [8, 768], "ln_f.weight": [768], "h.0.ln_1.weight": [768], "h.0.ln_2.weight": [768],
                  "h.0.attn.c_attn.weight": [768, 2304], "h.0.attn.c_proj.weight": [768, 768], "h.0.mlp.c_fc.weight": [768, 3072],
                  "h.0.mlp.c_proj.weight": [3072, 768]}
        header, data = {}, b""
        for name, shape in shapes.items():
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            pattern = array.array("f", [((i * 2654435761) % 1000 - 500) / 5000 for i in range(997)])
            values = (pattern * (count // 997 + 1))[:count].tobytes()
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 48, "n_positions": 8, "n_embd": 768, "n_layer": 1,
                                                        "n_head": 12, "bias": False, "bos_token_id": None, "eos_token_id": None}))
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    SHAPE = ["--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16]
    PACE = ["--batch-size", 2, "--eval-interval", 2, "--eval-iters", 1, "--sample-tokens", 0, "-t", 2]

    def check_training(self, before, shape, *args):
        """Faults in a run from the folder `before` (or none); afterwards it resumes to the bits of a run without."""
        whole, out = self.folder / "whole", self.folder / "out"
        def again(folder):
            shutil.rmtree(folder, ignore_errors=True)
            if before:
                shutil.copytree(before, folder)
        again(whole)
        done = run("train", *args, *shape, "--out-dir", whole)
        self.assertEqual(done.returncode, 0, done.stderr)
        files = lambda folder: {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*"))
                                if each.is_file() and each.name not in ("log.jsonl", "loss.svg", "train.json")}
        expected, faults = files(whole), 0
        for what, result in self.each_fault(FAULTS, "train", *args, *shape, "--out-dir", out, prepare=lambda: again(out)):
            code, faults = self.clean(what, result), faults + 1
            left = [each.name for each in out.rglob("*") if each.name.endswith(".tmp")] if out.exists() else []
            self.assertEqual(left, [], what)
            for path in (before.rglob("iter-*.safetensors") if before else []):
                self.assertEqual((out / path.relative_to(before)).read_bytes(), path.read_bytes(), what)
            if code != 0:
                resume = (out / "checkpoints").exists() and any((out / "checkpoints").glob("iter-*.safetensors"))
                rest = [] if "resume" in args else ["--init-from", "resume"] if resume else shape
                result = run("train", *args, *rest, "--out-dir", out)
                self.assertEqual(result.returncode, 0, (what, result.stderr))
            self.assertEqual(files(out), expected, what)
            self.assertEqual(same_log(out), same_log(whole), what)
        self.assertGreater(faults, 20)
        for what, result in self.each_fault(HARMLESS, "train", *args, *shape, "--out-dir", out, prepare=lambda: again(out)):
            self.assertEqual((result.returncode, files(out), same_log(out)), (0, expected, same_log(whole)), what)

    def test_train(self):
        self.check_training(None, self.SHAPE, "--data", self.file("input.txt", TEXT), "--max-iters", 2, *self.PACE)

    def test_train_resumed(self):
        before, data = self.folder / "before", self.file("input.txt", TEXT)
        self.assertEqual(run("train", "--data", data, "--max-iters", 2, *self.SHAPE, *self.PACE, "--out-dir", before).returncode, 0)
        self.check_training(before, [], "--data", data, "--max-iters", 4, *self.PACE, "--init-from", "resume", "--keep", 9)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
