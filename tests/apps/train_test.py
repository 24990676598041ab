"""Training as a shell sees it: vocabularies, runs, what they leave, and what interrupts them.
Above 400 lines: one command, its cases in classes that share their runs.

    python3 tests/apps/train_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import json
import os
import pickle
import pty
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest
import xml.etree.ElementTree as ET

from program import command, environment, popen, run, Folder, SAMPLE

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
                                 (2, ["--input", text, "--output", out, "--vocab-size", 256], "--vocab-size: expected 257 to"),
                                 (2, ["--input", text, "--output", out, "--type", "char", "--vocab-size", 65], "--vocab-size"),
                                 (2, ["--input", text, "--output", out, "--type", "unigram", "--vocab-size", 9],
                                  f"--vocab-size: expected at least {259 + len(set(TEXT) - set(chr(10)))}, for bytes"),
                                 (3, ["--input", self.folder / "none", "--output", out], "none"),
                                 (3, ["--input", self.folder / "empty", "--output", out], "*.txt or *.jsonl"),
                                 (7, ["--input", self.file("none.txt", ""), "--output", out], "expected text, got none"),
                                 (7, ["--input", self.file("bad.txt", b"ab\xff"), "--output", out],
                                  "bad.txt: expected UTF-8, got an ill-formed byte at offset 2"),
                                 (7, ["--input", self.file("bad.jsonl", '{"text":"a"}\n{"txt":"b"}'), "--output", out], "line 2"),
                                 (8, ["--input", text, "--output", text], "text.txt")):
            (self.folder / "empty").mkdir(exist_ok=True)
            self.fails(code, "tokenizer", "train", *args, says=says)
            self.assertFalse(out.exists())


CORPUS = TEXT * 2
TINY = ["--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4, "--warmup-iters", 2, "--lr-decay-iters", 30,
        "--eval-iters", 2, "--eval-interval", 10, "--sample-tokens", 8, "-t", 1]


class Training(Folder):
    def train(self, *args, code=0, **rest):
        result = run("train", "--data", self.data(), *TINY, *args, **rest)
        self.assertEqual(result.returncode, code, result.stderr)
        return result

    def data(self):
        return self.file("corpus.txt", CORPUS)

    def log(self, out):
        """Lines without the one field that a clock decides."""
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for line in lines:
            self.assertEqual(list(line), ["iter", "train_loss", "val_loss", "lr", "tok_per_s"])
            del line["tok_per_s"]
        return lines

    def test_a_run_leaves_a_model_a_log_and_a_curve(self):
        out = self.folder / "out"
        result = self.train("--out-dir", out, "--max-iters", 25)
        log = self.log(out)
        self.assertEqual([line["iter"] for line in log], [0, 10, 20, 25])
        self.assertLess(log[-1]["val_loss"], log[0]["val_loss"] - 0.1)
        self.assertIn("iter 25: training loss", result.stderr)
        self.assertGreater(len(result.stdout), 4 * 8)  # a sample at each evaluation
        self.assertEqual(ET.fromstring((out / "loss.svg").read_text()).tag, "{http://www.w3.org/2000/svg}svg")
        self.assertEqual(sorted(p.name for p in (out / "checkpoints").iterdir()),
                         ["iter-000000020.safetensors", "iter-000000025.safetensors"])
        text = run("generate", "--model", out, "-p", "ROMEO:", "-n", 8, "--seed", 1)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertTrue(text.stdout.startswith("ROMEO:"))
        self.assertFalse((out / ".next").exists())

    def test_losses_have_nine_digits(self):
        self.train("--out-dir", self.folder / "out", "--max-iters", 30)
        losses = re.findall(r'_loss":([\d.]+)', (self.folder / "out" / "log.jsonl").read_text())
        self.assertEqual(len(losses), 8)
        digits = [len(loss.replace(".", "").lstrip("0")) for loss in losses]
        self.assertEqual(max(digits), 9)
        self.assertGreaterEqual(sorted(digits)[2], 8, losses)  # %.9g drops a last 0

    def test_checkpoints_are_kept_as_many_as_asked_for(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 50, "--keep", 3)
        self.assertEqual([p.name[10:14] for p in sorted((out / "checkpoints").iterdir())], ["0030", "0040", "0050"])

    def test_progress_at_a_terminal(self):
        keyboard, terminal = pty.openpty()
        arguments = ["train", "--data", self.data(), *TINY, "--eval-interval", 10 ** 9, "--max-iters", 10 ** 9, "--out-dir", self.folder / "out"]
        process = subprocess.Popen(command(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=terminal, env=environment())
        os.close(terminal)
        said = b""
        while b"ETA" not in said:
            said += os.read(keyboard, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while os.read(keyboard, 4096):
                pass
        except OSError:  # the other end is closed
            pass
        os.close(keyboard)
        self.assertEqual(process.wait(timeout=60), 130)
        self.assertRegex(said.decode(), r"iter \d+/1000000000  loss \d\.\d{4}  \d+ tok/s  ETA ")

    def test_every_name_of_nanogpt(self):
        out = self.folder / "out"
        given = {"batch_size": 3, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "dropout": 0.25, "learning_rate": 0.002,
                 "min_lr": 0.0001, "warmup_iters": 1, "lr_decay_iters": 9, "max_iters": 2, "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9,
                 "grad_clip": 0.5, "gradient_accumulation_steps": 2, "eval_interval": 1, "eval_iters": 1, "seed": 5}
        flags = [each for name, value in given.items() for each in ("--" + name.replace("_", "-"), value)]
        result = run("train", "--data", self.data(), "--init-from", "scratch", "--out-dir", out, "--sample-tokens", 0, "--bias", *flags)
        self.assertEqual(result.returncode, 0, result.stderr)
        settings = json.loads((out / "train.json").read_text())
        self.assertEqual({**given, "bias": True}, {name: settings[name] for name in [*given, "bias"]})

    def test_words_of_nanogpt_for_true_and_false(self):
        for word, value in (("True", True), ("False", False), ("true", True), ("false", False)):
            out = self.folder / word
            self.train("--out-dir", out, "--max-iters", 0, "--bias=" + word, "--n-embd", 256, "--n-head", 1, "--n-layer", 1)  # the widest head
            self.assertIs(json.loads((out / "train.json").read_text())["bias"], value)

    def test_the_last_rate_falls_to_a_tenth_but_not_of_a_run_that_goes_on(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 0, "--learning-rate", 2e-3)
        self.assertEqual(json.loads((out / "train.json").read_text())["min_lr"], 2e-4)
        shutil.rmtree(out)
        self.train("--out-dir", out, "--max-iters", 0, "--min-lr", 0)
        result = run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", "--learning-rate", 1e-3)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads((out / "train.json").read_text())["min_lr"], 0)

    def test_the_settings_of_a_run_are_all_there_and_nothing_else(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 0)
        path = out / "train.json"
        whole = json.loads(path.read_text())
        for name in whole:
            path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
            self.fails(4, "train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", says=f"{path}: {name}: expected a value, got none")
        for text, says in ((json.dumps({**whole, "n_layr": 2}), "n_layr: expected the name of a setting"),
                           (json.dumps(whole)[:-1] + ', "seed": 1}', "seed: expected the key once"),
                           (json.dumps({**whole, "seed": "1"}), "seed: expected a whole number"),
                           (json.dumps({**whole, "bias": 1}), "bias: expected true or false"),
                           (json.dumps([whole]), "expected a JSON object"), (json.dumps(whole)[:-1], "expected a JSON object")):
            path.write_text(text)
            self.fails(4, "train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", says=f"{path}: {says}")

    def test_presets_are_nanogpts(self):
        both = {"learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0,
                "bias": False, "gradient_accumulation_steps": 1, "eval_interval": 250}
        each = {"cpu": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "lr_decay_iters": 2000, "dropout": 0.0},
                "gpu": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "lr_decay_iters": 5000, "dropout": 0.2}}
        for name, its_own in each.items():
            out = self.folder / name
            small = ["--batch-size", 1] if name == "gpu" else []
            result = run("train", "--data", self.data(), "--out-dir", out, "--preset", "shakespeare-char-" + name, "--max-iters", 0,
                         "--eval-iters", 1, "--sample-tokens", 0, *small)
            self.assertEqual(result.returncode, 0, result.stderr)
            settings, wanted = json.loads((out / "train.json").read_text()), {**both, **its_own}
            self.assertEqual(wanted, {key: settings[key] for key in wanted})

    def test_settings_of_nanogpt(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 1, "--preset", "shakespeare-char-gpu", "--dropout", 0.1)
        settings = json.loads((out / "train.json").read_text())
        self.assertEqual((settings["learning_rate"], settings["beta2"], settings["dropout"], settings["n_layer"]), (1e-3, 0.99, 0.1, 2))

    def test_a_killed_run_resumes_to_the_bit(self):
        straight, broken = self.folder / "straight", self.folder / "broken"
        args = ["--max-iters", 60, "--dropout", 0.1, "--gradient-accumulation-steps", 2]
        self.train("--out-dir", straight, *args)
        start = ["train", "--data", self.data(), "--out-dir", broken]
        first = True
        random.seed(time.time_ns())
        pauses = [random.uniform(0, 0.15) for _ in range(6)]
        for pause in pauses:
            process = popen(*start, *(TINY + args if first else ["--init-from", "resume", "-t", 1]))
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline and not list((broken / "checkpoints").glob("iter-*")):
                time.sleep(0.005)
            time.sleep(pause)
            process.kill()
            process.communicate()
            first = False
        result = run(*start, "--init-from", "resume", "-t", 2)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.log(straight), self.log(broken), pauses)
        self.assertEqual((straight / "model.safetensors").read_bytes(), (broken / "model.safetensors").read_bytes())
        last = "checkpoints/iter-000000060.safetensors"
        self.assertEqual((straight / last).read_bytes(), (broken / last).read_bytes())
        self.assertEqual(self.all_files(straight), self.all_files(broken))  # and nothing half written

    def all_files(self, out):
        return sorted(str(path.relative_to(out)) for path in out.rglob("*"))

    def test_what_a_kill_left_half_written_is_removed(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 10)
        before = self.all_files(out)
        for name in ("checkpoints/.iter-000000010.safetensors.4711.12.tmp", ".train.tokens.4711.0.tmp", ".next/.model.safetensors.4711.3.tmp"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("half")
        others = [".mine.tmp", "checkpoints/.4711.0.tmp", "notes.4711.0.tmp", ".a.4711.b.tmp"]
        for name in others:
            (out / name).write_text("whole")
        result = run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(before + others), self.all_files(out))

    def test_one_run_at_a_time_writes_to_a_folder(self):
        out = self.folder / "out"
        first = popen("train", "--data", self.data(), *TINY, "--out-dir", out, "--max-iters", 1000000)
        self.addCleanup(first.communicate)
        self.addCleanup(first.kill)
        while not list((out / "checkpoints").glob("iter-*")):
            self.assertIsNone(first.poll())
            time.sleep(0.01)
        for start in ("scratch", "resume"):
            self.fails(2, "train", "--data", self.data(), "--out-dir", out, "--init-from", start,
                       says=f"--out-dir: expected a folder that no other run writes to, got {out}")
        first.kill()
        first.wait()
        result = run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", "--max-iters", 1)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_ctrl_c_saves(self):
        out = self.folder / "out"
        process = popen("train", "--data", self.data(), *TINY, "--out-dir", out, "--max-iters", 1000000)
        while not (out / "log.jsonl").exists():
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        at = int(re.search(r"stopped at iteration (\d+)", said)[1])
        self.assertTrue((out / "checkpoints" / f"iter-{at:09}.safetensors").exists())

    def test_any_text_and_vocabulary(self):
        lines = self.file("lines.jsonl", "\n".join(json.dumps({"text": f"Document {i}: {TEXT[i:i + 40]}"}) for i in range(200)))
        for what, extra in (("bpe:300", ["--packed-documents"]), ("sp-bpe:310", []), ("unigram:310", ["--compute", "bf16"])):
            out = self.folder / "char"  # a folder, not the vocabulary of that name
            shutil.rmtree(out, ignore_errors=True)
            result = run("train", "--data", lines, *TINY, "--out-dir", out, "--max-iters", 12, "--tokenizer", what, *extra)
            self.assertEqual(result.returncode, 0, result.stderr)
            log = self.log(out)
            self.assertLess(log[-1]["val_loss"], log[0]["val_loss"])
            vocabulary = sorted(p.name for p in out.iterdir())
            result = run("train", "--data", lines, "--out-dir", out, "--init-from", "resume", "--max-iters", 14)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(vocabulary, sorted(p.name for p in out.iterdir()))

    def binaries(self, name, train, validation=range(200)):
        folder = self.folder / name
        folder.mkdir()
        for file, ids in (("train.bin", train), ("val.bin", validation)):
            (folder / file).write_bytes(b"".join(i.to_bytes(2, "little") for i in ids))
        return folder

    def test_nanogpt_binaries(self):
        ids = [i * i % 31 for i in range(3000)]
        folder = self.binaries("bins", ids[:2500], ids[2500:])
        meta = {"vocab_size": 31, "itos": {i: chr(65 + i) for i in range(31)}, "stoi": {chr(65 + i): i for i in range(31)}}
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))  # as nanoGPT's prepare.py leaves it
        out = self.folder / "out"
        arguments = ["train", "--data", folder, *TINY, "--out-dir", out, "--max-iters", 10]
        refused = self.fails(3, *arguments, says=f"{folder}/meta.json: expected it in place of {folder}/meta.pkl")
        self.assertFalse(out.exists())
        subprocess.run(re.search(r'python3 -c ".*"', refused)[0], shell=True, check=True)  # what it says to do
        self.fails(2, *arguments, "--tokenizer", "bpe:300", says="--tokenizer: expected the path of one beside nanoGPT's ids, got bpe:300")
        result = run(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2500 training and 500 validation", result.stderr)
        text = run("generate", "--model", out, "-p", "ABC", "-n", 8)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertTrue(text.stdout.startswith("ABC"))

    def test_binaries_without_a_tokenizer_make_a_model_for_ids(self):
        out = self.folder / "out"
        folder = self.binaries("bins", [50256, 1, 2, 50303] * 60)
        result = run("train", "--data", folder, *TINY, "--out-dir", out, "--max-iters", 0)
        self.assertEqual((result.returncode, result.stdout), (0, ""), result.stderr)
        self.assertIn(f"{folder} has no tokenizer: ids are taken as 50304 tokens, no sample is drawn", result.stderr)
        tuned = run("train", "--data", folder, *TINY[6:], "--out-dir", self.folder / "tuned", "--init-from", out, "--max-iters", 0)
        self.assertEqual(tuned.returncode, 0, tuned.stderr)
        self.fails(3, "generate", "--model", out, "-p", "ABC", says="tokenizer.json")

    def test_binaries_split_into_packed_documents_after_each_end_of_text(self):
        folder = self.binaries("bins", [1, 2, 3, 50256] * 30 + [4, 5], [7, 50256] * 40)
        result = run("train", "--data", folder, *TINY, "--out-dir", self.folder / "out", "--max-iters", 1, "--packed-documents")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("122 training (31 documents) and 80 validation (40 documents) tokens", result.stderr)
        (folder / "meta.json").write_text(json.dumps({"stoi": {"a": 0}}))
        self.fails(2, "train", "--data", folder, *TINY, "--out-dir", self.folder / "other", "--max-iters", 1, "--packed-documents",
                   says="--packed-documents: expected a vocabulary with an end of text")

    def test_an_id_outside_the_vocabulary_is_named_before_the_run(self):
        out = self.folder / "out"
        for train, validation, says in (([5] * 70 + [60000], [5] * 70, "bins/train.bin: id 70: expected 0 to 50303, got 60000"),
                                        ([5] * 70, [50304] + [5] * 70, "bins/val.bin: id 0: expected 0 to 50303, got 50304")):
            folder = self.binaries("bins", train, validation)
            self.fails(4, "train", "--data", folder, *TINY, "--out-dir", out, "--max-iters", 0, says=says)
            self.assertFalse(out.exists())
            (folder / "meta.json").write_text(json.dumps({"stoi": {"a": 0}}))
            self.fails(4, "train", "--data", folder, *TINY, "--out-dir", out, "--max-iters", 0, says="train.bin: id 0: expected 0 to 0, got 5")
            self.assertFalse(out.exists())
            shutil.rmtree(folder)
        self.train("--out-dir", out, "--max-iters", 0)
        ids = bytearray((out / "val.tokens").read_bytes())
        ids[-2:] = b"\xff\xff"
        (out / "val.tokens").write_bytes(ids)
        self.fails(4, "train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", says=f"{out}/val.tokens: id ")

    def test_a_run_goes_on_with_its_own_data(self):
        out, bins = self.folder / "out", self.folder / "from-bins"
        self.train("--out-dir", out, "--max-iters", 0)
        other = self.file("other.txt", CORPUS + "more")
        ids = [i % 60 for i in range(200)]
        folder, zeros, moved = self.binaries("bins", ids), self.binaries("zeros", [0] * 200), self.binaries("moved", ids + [0], range(1, 200))
        self.assertEqual(run("train", "--data", folder, *TINY, "--out-dir", bins, "--max-iters", 0).returncode, 0)
        for run_folder, data in ((out, other), (out, folder), (bins, self.data()), (bins, zeros), (bins, moved)):
            before = sorted(p.name for p in run_folder.iterdir())
            self.fails(7, "train", "--data", data, "--out-dir", run_folder, "--init-from", "resume", "--max-iters", 1,
                       says=f"{data}: expected what the run in {run_folder} began with")
            self.assertEqual(before, sorted(p.name for p in run_folder.iterdir()))
        for run_folder, data in ((out, self.data()), (bins, folder)):
            result = run("train", "--data", data, "--out-dir", run_folder, "--init-from", "resume", "--max-iters", 1)
            self.assertEqual(result.returncode, 0, result.stderr)
        (bins / "meta.json").write_text(json.dumps({"stoi": {"a": 0}}))
        self.fails(4, "train", "--data", folder, "--out-dir", bins, "--init-from", "resume", says="train.bin: id 1: expected 0 to 0, got 1")

    def test_another_tokenizer_in_the_out_folder_is_not_taken(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 0)
        shutil.rmtree(out / "checkpoints")
        self.fails(2, "train", "--data", self.data(), *TINY, "--out-dir", out, "--tokenizer", "bpe:300",
                   says=f"--out-dir: expected a folder without another tokenizer, got {out} with meta.json")
        self.assertEqual(run("train", "--data", self.data(), *TINY, "--out-dir", out, "--max-iters", 0).returncode, 0)

    def test_a_character_that_the_vocabulary_lacks_is_named_with_its_file(self):
        run("tokenizer", "train", "--type", "char", "--input", self.data(), "--output", self.folder / "vocabulary")
        for name, text, says in (("late.txt", CORPUS + "ä", f"late.txt: from byte "), ("early.txt", "ä" + CORPUS, "early.txt: encode: text: byte 0"),
                                 ("lines.jsonl", '{"text":"RO"}\n{"text":"Oä"}', "lines.jsonl: line 2: encode: text: byte 1")):
            self.fails(7, "train", "--data", self.file(name, text), *TINY, "--out-dir", self.folder / "out", "--tokenizer", self.folder / "vocabulary",
                       says=says)

    def test_fine_tuning(self):
        base, tuned = self.folder / "base", self.folder / "tuned"
        self.train("--out-dir", base, "--max-iters", 20)
        result = run("train", "--data", self.data(), *TINY[6:], "--init-from", base / "model.safetensors", "--out-dir", tuned, "--max-iters", 0, "--learning-rate", 1e-4,
                     "--min-lr", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertAlmostEqual(self.log(base)[-1]["val_loss"], self.log(tuned)[0]["val_loss"], places=5)
        self.assertFalse((tuned / "generation_config.json").exists())

    def test_fine_tuning_keeps_what_the_author_says_of_drawing(self):
        base, tuned = self.folder / "base", self.folder / "tuned"
        self.train("--out-dir", base, "--max-iters", 0)
        (base / "generation_config.json").write_text('{"temperature": 0.5}')
        result = run("train", "--data", self.data(), *TINY[6:], "--init-from", base, "--out-dir", tuned, "--max-iters", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((tuned / "generation_config.json").read_text(), '{"temperature": 0.5}')

    def test_text_that_is_no_utf8_is_named_with_the_byte(self):
        self.train("--out-dir", self.folder / "run", "--max-iters", 0)
        for count in (3, 1000):  # of the shorter, the last is for validation
            bad = self.file("bad.txt", b"a" * count + b"\xff")
            for tokenizer in ([], ["--tokenizer", "sp-bpe:300"], ["--tokenizer", self.folder / "run"]):
                self.fails(7, "train", "--data", bad, "--out-dir", self.folder / "out", *tokenizer,
                           says=f"{bad}: expected UTF-8, got an ill-formed byte at offset {count}")

    def test_a_vocabulary_of_another_model_is_refused(self):
        self.fails(4, "train", "--data", self.data(), "--out-dir", self.folder / "out", "--init-from", SAMPLE, "--tokenizer", "char",
                   "--block-size", 16, says="vocab_size: expected the tokenizer's")

    def test_what_is_refused(self):
        out, short = self.folder / "out", self.file("short.txt", "abc")
        self.train("--out-dir", self.folder / "run", "--max-iters", 0)
        for code, args, says in ((2, ["--out-dir", out], "--data"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--n-layer", 0], "--n-layer"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--compute", "int8"], "--compute"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--save-dtype", "int8"], "--save-dtype"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--preset", "large"], "--preset"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--tokenizer", "bpe:many"], "--tokenizer"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--tokenizer", "unigram:30"],
                                  f"--tokenizer unigram:30: vocab_size: expected at least {259 + len(set(TEXT) - set(chr(10)))}"),
                                 (2, ["--data", self.data(), "--out-dir", self.folder / "run"], "--init-from resume"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--init-from", self.folder / "run", "--n-embd", 8], "--n-embd"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--init-from", self.folder / "run", "--block-size", 64], "--block-size"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--init-from", self.folder / "run", "--preset", "shakespeare-char-gpu"],
                                  "--preset: expected --init-from scratch"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--seed", -1], "--seed: expected a whole number from 0 to 9000000000000000"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--bias=no"], "--bias: expected true or false"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--n-embd", 15, "--n-head", 2],
                                  "--n-head: expected a divisor of --n-embd 15, got 2"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--n-embd", 257, "--n-head", 1],
                                  "--n-head: expected at least 2 for --n-embd 257"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--min-lr", 1], "--min-lr: expected at most --learning-rate 0.001, got 1"),
                                 (2, ["--data", self.data(), "--out-dir", out, "--warmup-iters", 2000],
                                  "--lr-decay-iters: expected 0 or more than --warmup-iters 2000, got 2000"),
                                 (3, ["--data", self.data(), "--out-dir", out, "--init-from", "resume"], "train.json"),
                                 (3, ["--data", self.data(), "--out-dir", out, "--init-from", "/nonexistent"],
                                  "--init-from: expected scratch, resume or a model's folder or file, got /nonexistent"),
                                 (3, ["--data", self.data(), "--out-dir", out, "--init-from", "weights/sampel"], "got weights/sampel, which does not exist"),
                                 (3, ["--data", self.folder / "none", "--out-dir", out], "none"),
                                 (7, ["--data", self.file("empty.txt", ""), "--out-dir", out], "expected text, got none"),
                                 (7, ["--data", short, "--out-dir", out], "--block-size"),
                                 (8, ["--data", self.data(), "--out-dir", short], "short.txt")):
            self.fails(code, "train", *args, says=says)
            self.assertFalse((out / "checkpoints").exists())
        big = self.file("big.txt", CORPUS + "äöü")
        vocabulary = self.folder / "vocabulary"
        run("tokenizer", "train", "--type", "char", "--input", big, "--output", vocabulary)
        self.fails(4, "train", "--data", big, "--out-dir", out, "--block-size", 16, "--init-from", self.folder / "run", "--tokenizer", vocabulary,
                   says="vocab_size")

    def test_a_loss_that_is_no_number_ends_the_run_and_loses_nothing(self):
        out = self.folder / "out"
        result = self.train("--out-dir", out, "--max-iters", 40, "--learning-rate", 1000, "--min-lr", 1000, "--grad-clip", 0, "--n-layer", 12,
                            "--warmup-iters", 0, "--weight-decay", 1000, code=9)
        failed = int(re.search(r"iteration (\d+): expected a finite loss and gradient", result.stderr)[1])
        self.assertNotEqual(failed % 10, 0)  # no evaluation has saved it
        self.assertEqual(max(p.name for p in (out / "checkpoints").iterdir()), f"iter-{failed:09}.safetensors")
        self.assertEqual(run("generate", "--model", out, "-p", "ROMEO:", "-n", 2).returncode, 0)
        again = run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume")
        self.assertEqual(again.returncode, 9)
        self.assertIn(f"iteration {failed}: expected a finite loss", again.stderr)

    def test_a_loss_that_is_no_number_is_not_logged(self):
        base, out = self.folder / "base", self.folder / "out"
        self.train("--out-dir", base, "--max-iters", 0)
        weights = bytearray((base / "model.safetensors").read_bytes())
        weights[-4:] = struct.pack("<f", float("nan"))
        (base / "model.safetensors").write_bytes(weights)
        result = run("train", "--data", self.data(), *TINY[6:], "--init-from", base, "--out-dir", out)
        self.assertEqual(result.returncode, 9, result.stderr)
        self.assertIn("iteration 0: expected finite losses, got nan", result.stderr)
        self.assertFalse((out / "log.jsonl").exists())

    def test_more_memory_than_there_is_is_refused_before_the_data_is_read(self):
        out = self.folder / "out"
        for args, says in ((["--batch-size", 1 << 20, "--block-size", 2047], "which are available, got a run that takes"),
                           (["--n-embd", 1 << 16, "--n-head", 256, "--n-layer", 64], "which are available, got a run that takes"),
                           (["--max-memory", "200K"], "--batch-size 4 of --block-size 16, 2 layers of width 16: expected at most 0.20 MB (--max-memory), got"),
                           (["--max-memory", "1M", "--gradient-accumulation-steps", 1 << 14], "expected at most 1.05 MB (--max-memory), got a run that takes 12.")):
            self.fails(5, "train", "--data", self.folder / "none", *TINY, "--out-dir", out, *args, says=says)
            self.assertFalse(out.exists())
        self.fails(2, "train", "--data", self.data(), *TINY, "--out-dir", out, "--batch-size", 1 << 20, "--block-size", 2048,
                   says="--batch-size: expected at most 1048575 for --block-size 2048")
        self.train("--out-dir", out, "--max-iters", 1, "--max-memory", "1M")

    def test_attention_by_one_backend(self):
        logs = {}
        for backend in ("flash", "math"):
            out = self.folder / backend
            said = self.train("--out-dir", out, "--max-iters", 10, "--attn", backend, "--profile", "--sample-tokens", 0).stderr
            self.assertEqual({name for name in ("flash", "math", "decode") if f"sdpa {name}" in said}, {backend}, said)
            logs[backend] = self.log(out)
        for a, b in zip(*logs.values(), strict=True):
            self.assertAlmostEqual(a["val_loss"], b["val_loss"], places=4)
        out = self.folder / "decode"
        refused = self.fails(2, "train", "--data", self.data(), *TINY, "--block-size", 17, "--out-dir", out, "--attn", "decode",
                             says="--attn: expected a backend that can run B=4 H=2 T=17 D=8 f32 causal_upper_left backward, got")
        self.assertIn("17 query rows, at most 16", refused)
        self.assertFalse(out.exists())

    def test_a_full_disk_keeps_the_old_checkpoint(self):
        out = self.folder / "out"
        self.train("--out-dir", out, "--max-iters", 10)
        kept = {p.name: p.read_bytes() for p in (out / "checkpoints").iterdir()}

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() shall fail, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        result = run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", "--max-iters", 20, preexec_fn=limit)
        self.assertEqual(result.returncode, 8, result.stderr)
        self.assertEqual(kept, {p.name: p.read_bytes() for p in (out / "checkpoints").iterdir() if p.name in kept})
        self.assertTrue(kept)
        self.assertEqual(run("train", "--data", self.data(), "--out-dir", out, "--init-from", "resume", "--max-iters", 20).returncode, 0)
        self.assertEqual(self.log(out)[-1]["iter"], 20)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
