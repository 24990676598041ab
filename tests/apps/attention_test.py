"""Attention from the command line: --attn, doctor --attn, bench sdpa.

    python3 tests/apps/attention_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import csv
import json
import signal
import subprocess
import sys
import time
import unittest

from program import INKLING, PATIENCE, run, Folder


class Attention(Folder):
    def test_the_caller_chooses_how_attention_is_computed(self):
        texts = self.file("t.jsonl", json.dumps({"id": 0, "text": "ROMEO: But soft, what light through yonder window breaks? " * 3}))
        def score(*args):
            return run("eval", "--score", texts, "--output", "jsonl", "-q", "--dtype", "f32", *args)
        default = score()
        self.assertEqual(default.returncode, 0, default.stderr)
        self.assertEqual(score("--attn", "flash").stdout, default.stdout)
        self.assertEqual(score("--attn", "auto").stdout, default.stdout)
        expected = json.loads(default.stdout)["logprobs"][1:]
        oracle = json.loads(score("--attn", "math").stdout)["logprobs"][1:]
        self.assertNotEqual(oracle, expected)
        for a, b in zip(expected, oracle, strict=True):
            self.assertAlmostEqual(a, b, delta=2e-5)
        refused = score("--attn", "decode")
        self.assertEqual((refused.returncode, refused.stdout), (2, ""))
        self.assertIn("query rows, at most 16", refused.stderr)
        self.assertEqual(score("--attn", "decode", "--prefill-chunk", 16).stdout, default.stdout)
        self.assertEqual(score("--attn", "decode,flash").stdout, default.stdout)
        for names, chosen in (("flash", "flash"), ("math,flash", "math"), ("decode", None)):
            explain = ["inspect", "--no-hash", "--explain", "--attn", names]
            prompt = json.loads(run(*explain, "--output", "json").stdout)["execution"]["attention_of_prompt"]
            self.assertEqual(prompt["chosen"], chosen)
            self.assertEqual({*prompt["refused"], chosen} - {None}, {"flash", "decode", "math"})
            self.assertEqual([name for name, reason in prompt["refused"].items() if reason == "not among the backends allowed here"],
                             [name for name in ("flash", "decode", "math") if name not in names])
            self.assertRegex(run(*explain).stdout, "attention_of_prompt +" + (f"{chosen}: chosen" if chosen else "none can run it") + "\n")
        for bad in ["fast", "flash,flash", "flash,", ""]:
            done = score("--attn", bad)
            self.assertEqual(done.returncode, 2)
            self.assertIn("--attn: expected auto, or some of flash, decode and math, each once", done.stderr)

    def test_doctor_tells_how_attention_would_run(self):
        def ask(text, *args):
            return run("doctor", "--attn", text, *args)
        done = ask("B=2 H=12 T=1024 D=64")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"forward +flash: chosen")
        self.assertIn("decode: refused, Tq · H/Hkv = 1024 · 1 = 1024 query rows, at most 16", done.stdout)
        self.assertIn("math: refused, flash comes first", done.stdout)
        done = ask("H=12 Tq=1 Tk=1000000 D=64 mask=causal-lower-right dtype=bf16")
        self.assertRegex(done.stdout, r"forward +decode: chosen")
        done = ask("H=4 T=64 D=8 mask=additive_bias dropout=0.1 backward=1", "--attn-order", "math,flash")
        self.assertRegex(done.stdout, r"forward +math: chosen")
        self.assertRegex(done.stdout, r"backward +math: chosen")
        self.assertIn("decode: refused, not among the backends allowed here", done.stdout)
        done = ask("T=4096 memory_limit=1M", "--attn-order", "math")
        self.assertIn("none can run it", done.stdout)
        self.assertIn("memory_limit is 1 MiB", done.stdout)
        done = ask("H=1 Tq=30 Tk=40 memory_limit=0", "--attn-order", "math", "-t", 1)
        self.assertIn("none can run it", done.stdout)
        self.assertRegex(done.stdout, r"memory limit +0 bytes that grow with Tq x Tk; math takes 9600, flash and decode none")
        start = time.monotonic()  # no memory goes to the documents of 10⁹ tokens
        self.assertRegex(ask("B=64 T=16777216 mask=document").stdout, r"forward +flash: chosen")
        self.assertLess(time.monotonic() - start, PATIENCE)
        for empty in ["T=0", "Tq=0 Tk=7", "Tq=7 Tk=0 H=8 Hkv=1 mask=boolean backward=1"]:
            done = ask(empty)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout, r"forward +(decode|flash): chosen")
        for text, part in [("T=-1", "T: expected a whole number from 0"), ("B=0", "B: expected a whole number from 1"), ("T=8 T=9", "T: expected once"), ("Q=1", "expected one of B, H"),
                           ("T", "expected KEY=VALUE"), ("mask=causal", "causal needs its alignment"), ("dtype=i8", "dtype: expected"),
                           ("Tq=5", "Tq: expected Tk beside it"), ("Tk=7 T=5", "Tk: expected Tq beside it"), ("Tq=1 Tk=2 T=3", "T: expected either"),
                           ("T=8 window=4", "window: expected the mask sliding_window"), ("B=1048576 T=4096", "B: expected at most 2147483647"),
                           ("", "--attn: expected a shape"), ("=3", "expected KEY=VALUE"), ("backward=yes", "backward: expected one of 0, 1"),
                           ("dropout=1", "dropout: expected a rate"), ("H=4 Hkv=3", "Hkv"), ("D=300", "D: expected")]:
            done = ask(text)
            self.assertEqual((done.returncode, done.stdout), (2, ""), text)
            self.assertIn(part, done.stderr)

    def test_bench_sdpa_compares_backends_and_gives_reasons(self):
        def bench(*args):
            return run("bench", "sdpa", "-q", "-r", 1, "--output", "json", *args)
        rows = json.loads(bench("--length", 64, "--heads", 2, "--backward").stdout)
        self.assertEqual([r["what"] for r in rows], ["flash", "flash backward", "decode", "math", "math backward"])
        for r in rows:
            self.assertEqual(set(r), {"experiment", "shape", "what", "threads", "isa", "us", "gflop_per_s", "gb_per_s", "of_f32_peak", "note"})
            self.assertEqual(set(r["us"]), {"median", "min", "max"})
            if r["what"] == "decode":
                self.assertIn("refused: Tq", r["note"])
                self.assertEqual((r["us"]["median"], r["of_f32_peak"]), (None, None))
            else:
                self.assertGreater(r["gflop_per_s"], 0)
        # Flops are those of the scores to be seen: 64 · 65 / 2 under a causal mask.
        flash = rows[0]
        self.assertAlmostEqual(flash["gflop_per_s"] * flash["us"]["median"] * 1e3, 2 * 2 * 64 * 2 * 64 * 65 / 2, delta=1)
        rows = json.loads(bench("--varlen", "1,30,64", "--heads", 4, "--kv-heads", 2, "--mask", "sliding-window", "--window", 8,
                                "--dtype", "bf16", "--dropout", 0.1, "--backend", "flash").stdout)
        self.assertEqual([r["what"] for r in rows], ["flash"])
        self.assertEqual(rows[0]["shape"], "B=3 H=4 Hkv=2 T=1..64 D=64 bf16 sliding_window 8 dropout=0.1")
        table = run("bench", "sdpa", "-q", "-r", 2, "--output", "csv", "--length", 40, "--heads", 1).stdout.splitlines()
        self.assertEqual(table[0], "experiment,shape,what,us,min,max,gflop_per_s,of_f32_peak,gb_per_s,note")
        self.assertEqual([len(list(csv.reader([line]))[0]) for line in table], [10] * 4)
        median, least, most = map(float, list(csv.reader(table[1:2]))[0][3:6])
        self.assertAlmostEqual(median, (least + most) / 2, delta=1e-4 * most)
        self.assertIn("| explore |", run("bench", "sdpa", "-r", 1, "--length", 8, "--heads", 1).stdout)

    def test_bench_sdpa_counts_what_a_mask_shows_and_takes_sequences_without_tokens(self):
        def flops(*args):
            done = run("bench", "sdpa", "-q", "-r", 1, "--output", "json", "--backend", "flash", "--heads", 1, "--head-dim", 8, *args)
            self.assertEqual(done.returncode, 0, done.stderr)
            row = json.loads(done.stdout)[0]
            return row["gflop_per_s"] * row["us"]["median"] * 1e3 / (4 * 8), row["shape"]
        full, _ = flops("--length", 512, "--mask", "none")
        documents, _ = flops("--length", 512, "--mask", "document")  # four of 128 tokens
        booleans, _ = flops("--length", 512, "--mask", "boolean")  # three in four are true
        self.assertAlmostEqual(full, 512 * 512, delta=1)
        self.assertAlmostEqual(documents, 512 * 128, delta=1)
        self.assertAlmostEqual(booleans / full, 0.75, delta=0.01)
        for args, scores, shape in [(["--varlen", "0,5"], 15, "B=2 H=1 T=0..5"), (["--length", 0], 0, "B=1 H=1 T=0"),
                                    (["--q-length", 0, "--k-length", 9], 0, "B=1 H=1 Tq=0 Tk=9"),
                                    (["--k-length", 0, "--length", 9], 0, "B=1 H=1 Tq=9 Tk=0")]:
            got, text = flops(*args)
            self.assertAlmostEqual(got, scores, delta=1e-3)
            self.assertTrue(text.startswith(shape + " "), text)

    def test_bench_sdpa_refuses_what_would_have_no_effect(self):
        many = ["--batch", 65536, "--length", 1048576]
        for args, says in [
            # What was asked for by name is refused before anything is measured.
            (["--length", 64, "--backend", "flash,decode"], "--backend: decode cannot run B=1 H=12 T=64 D=64 f32 causal_lower_right: Tq · H/Hkv = 64"),
            (["--q-length", 1, "--backend", "decode", "--backward"], "it has no backward pass"),
            (["--length", 64, "--backend", "math", "--memory-limit", 8], "memory_limit"),
            (["--backend", "all,flash"], "--backend: expected all, or some of flash, decode and math, each once, got 'all,flash'"),
            (["--backend", "auto"], "--backend: expected all, or some"),
            (many, "--batch: expected at most 2147483647 tokens in all, got 68719476736"),
            (["--varlen", "3,5", "--batch", 2], "--batch: expected none beside --varlen"),
            (["--q-length", 1, "--k-length", 2, "--length", 3], "--length: expected none beside --q-length and --k-length"),
            (["--window", 8], "--window: expected the mask sliding_window beside it, got causal_lower_right"),
            (["--scale", 1], "--scale: expected --suite beside it"),
            (["--suite", "tutorial", "--heads", 3], "--heads: expected none beside --suite"),
            (["--suite", "tutorial", "--backward"], "--backward: expected none beside --suite"),
            (["--suite", "other"], "--suite: expected one of tutorial"),
            (["--mask", "causal"], "causal needs its alignment"),
            (["--heads", 6, "--kv-heads", 4, "--length", 8], "expected Hkv to divide H = 6, got 4"),
        ]:
            done = run("bench", "sdpa", *args)
            self.assertEqual((done.returncode, done.stdout), (2, ""), args)
            self.assertIn(says, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_bench_sdpa_stops_when_asked(self):
        process = subprocess.Popen([INKLING, "bench", "sdpa", "--length", "2048", "--backend", "math", "--memory-limit", "4G", "-r", "100"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertIn("2048", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        self.assertEqual(process.communicate(timeout=60)[0], "")
        self.assertEqual(process.returncode, 130)
        self.assertLess(time.monotonic() - start, PATIENCE)

    def test_bench_sdpa_runs_the_tutorial(self):
        done = run("bench", "sdpa", "--suite", "tutorial", "--scale", 0.01, "--length", 64, "-r", 1, "--output", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(done.stdout)
        self.assertEqual(list(dict.fromkeys(r["experiment"] for r in rows)),
                         ["backend comparison", "varlen vs dense, 50% padding", "module eager vs planned", "upper-left vs lower-right"])
        notes = [r["note"] for r in rows if r["experiment"] == "upper-left vs lower-right"]
        self.assertEqual(notes, ["", "differs from upper-left", "", "equal to upper-left"])
        tokens = [int(r["shape"].split()[-2]) for r in rows if r["experiment"].startswith("varlen")]
        self.assertEqual(tokens[0], 2 * tokens[1])
        self.assertIn("1 1 1 1 1 1 1 1 1 0\n1 1 1 1 1 1 1 1 1 1", done.stderr)
        self.assertIn("(c_attn): Linear(in_features=512, out_features=1536, bias=False)", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
