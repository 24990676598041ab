"""What the program says of itself: bench, profile and trace, hashes, inspect and doctor.

    python3 tests/apps/measure_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import csv
import hashlib
import json
import os
import pathlib
import sys
import tempfile
import unittest

from program import SAMPLE, run, Folder


class Bench(Folder):
    def test_bench_gemm_prints_json(self):
        rows = json.loads(run("bench", "gemm", "--shapes", "64x48,48x64", "--rows", "1,3", "--formats", "f32,int8", "-r", 1, "--output", "json").stdout)
        self.assertEqual([(r["k"], r["m"], r["format"]) for r in rows[:4]], [(64, 1, "f32"), (64, 3, "f32"), (64, 1, "int8"), (64, 3, "int8")])
        self.assertEqual(set(rows[0]), {"k", "n", "m", "format", "threads", "isa", "us", "gflop_per_s", "gb_per_s"})
        self.assertLessEqual(rows[0]["us"]["min"], rows[0]["us"]["median"])

    def test_bench_prints_the_promised_json(self):
        rows = json.loads(run("bench", "-p", 16, "-n", 4, "-b", "1,2", "-r", 2, "--output", "json").stdout)
        self.assertEqual([(r["test"], r["batch"]) for r in rows], [("pp16", 1), ("tg4", 1), ("tg4", 2)])
        self.assertEqual(set(rows[0]), {"model", "dtype", "quant", "threads", "isa", "test", "batch", "tok_per_s", "rss_mb", "load_ms"})
        self.assertLessEqual(rows[0]["tok_per_s"]["min"], rows[0]["tok_per_s"]["median"])
        deep = json.loads(run("bench", "-p", 0, "-n", 4, "-d", 16, "-r", 1, "--output", "json").stdout)
        self.assertEqual([r["test"] for r in deep], ["tg4 @ d16"])
        self.fails(7, "bench", "-p", 0, "-n", 4, "-d", 254, says="--tokens: expected at most the context's 256 positions, got 4 after 254")
        self.fails(7, "bench", "-d", 256, says="--depth: expected room for a token in the context's 256 positions, got 256")
        self.fails(2, "bench", "-p", 0, "-n", "0,0", says="expected --prompt or --tokens above 0, got 0 for both")

    def test_bench_alone_measures_what_the_context_holds(self):
        tests = lambda *more: [r["test"] for r in json.loads(run("bench", "-r", 1, "--output", "json", *more).stdout)]
        self.assertEqual(tests(), ["pp256", "tg128"])
        self.assertEqual(tests("-c", 24, "-d", 4), ["pp24", "tg20 @ d4"])
        self.assertEqual(tests("-c", 24, "-n", 3), ["pp24", "tg3"])
        self.assertEqual(tests("-p", 5, "-c", 24), ["pp5", "tg24"])

    def test_bench_names_weights_as_they_were_asked_for(self):
        row = lambda *more: json.loads(run("bench", "-p", 2, "-n", 0, "-r", 1, "--output", "json", *more).stdout)[0]
        for dtype in ("f32", "f16", "bf16"):
            self.assertEqual(row("--dtype", dtype)["dtype"], dtype)
        self.assertEqual((row()["dtype"], row()["quant"], row("--quant", "int4")["quant"]), ("bf16", "none", "int4"))

    def test_bench_prints_tables(self):
        args = ["bench", "-p", 8, "-n", 2, "-r", 1, "--ceiling", "--output"]
        header, *rows = csv.reader(run(*args, "csv").stdout.splitlines())
        self.assertEqual((header[5], header[-1], [row[5] for row in rows]), ("test", "of ceiling", ["pp8", "tg2"]))
        for row in rows:
            self.assertGreater(float(row[7]), 0)
            self.assertRegex(row[-1], r"^(\d+%)?$")
        table = run(*args, "md").stdout.splitlines()
        self.assertEqual({line.count("|") for line in table}, {len(header) + 1})

    def test_profile_and_trace_tell_where_the_time_went(self):
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace.json"
            done = run("generate", "-p", "ROMEO:", "-n", 5, "--profile", "--trace", trace)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stdout, run("generate", "-p", "ROMEO:", "-n", 5, "-s", done.stderr.split("seed ")[1].split(",")[0]).stdout)
            for name in ["range", "step", "forward", "linear", "attention", "sample", "pack"]:
                self.assertIn(name, done.stderr)
            events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
            steps = [e for e in events if e["name"] == "step"]
            self.assertEqual(len(steps), 5)
            for e in events:  # every op of a step lies within one
                if e["name"].startswith("linear"):
                    self.assertTrue(any(s["ts"] <= e["ts"] and e["ts"] + e["dur"] <= s["ts"] + s["dur"] for s in steps))
                if e["name"].startswith("linear") or e["name"] in ("embed", "sample"):
                    self.assertGreater(e["args"]["flops"], 0)
                    self.assertGreater(e["args"]["bytes"], 0)
            self.assertLess({"embed", "sample"}, {e["name"] for e in events})
            self.assertEqual(os.listdir(folder), ["trace.json"])
            done = run("bench", "gemm", "--shapes", "8x8", "--rows", 1, "--formats", "f32", "-r", 1, "--profile")
            self.assertIn("linear 8x8", done.stderr)
            failed = run("eval", "--score", "/nonexistent", "--profile", "--trace", pathlib.Path(folder) / "failed.json")
            self.assertEqual(failed.returncode, 3)
            self.assertIn("pack", failed.stderr)  # the weights were, before the file was missed
            self.assertTrue(json.loads((pathlib.Path(folder) / "failed.json").read_text())["traceEvents"])
            nothing = run("tokenize", "a", "--profile")
            self.assertEqual((nothing.returncode, nothing.stderr), (0, "inkling: nothing was recorded: the command has run no op\n"))
            nothing = run("generate", "--profile", "--trace", pathlib.Path(folder) / "nothing.json")
            self.assertEqual((nothing.returncode, nothing.stderr.count("\n")), (2, 1), nothing.stderr)
            self.assertEqual(sorted(os.listdir(folder)), ["failed.json", "trace.json"])
        done = run("generate", "-p", "a", "--trace", "/nonexistent/trace.json")
        self.assertEqual((done.returncode, done.stdout), (8, ""))
        self.assertIn("/nonexistent/trace.json", done.stderr)


class About(Folder):
    def test_weights_are_verified_by_hash_and_manifest(self):
        weights = (SAMPLE / "model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        facts = json.loads(run("inspect", "--tensors", "--output", "json").stdout)
        self.assertEqual(facts["files"]["sha256"], {"model.safetensors": digest})
        self.assertIn(f"  sha256                {digest}  model.safetensors\n", run("inspect").stdout)
        header = json.loads(weights[8:8 + int.from_bytes(weights[:8], "little")])
        self.assertEqual(facts["tensors"], {name: {"dtype": tensor["dtype"].lower(), "shape": tensor["shape"]}
                                            for name, tensor in header.items() if name != "__metadata__"})
        for good in ("sha256:" + digest, self.file("good", digest + "  model.safetensors\n")):
            self.assertEqual(run("generate", "-p", "x", "-n", 1, "--verify", good).returncode, 0)
        self.fails(4, "generate", "-p", "x", "--verify", self.file("bad", "0" * 64 + "  model.safetensors\n"), says="model.safetensors")

    def test_inspect_and_doctor_explain(self):
        explained = run("inspect", "--explain").stdout
        for word in ("parameters", "3111936", "sha256", "refused", "kv_page"):
            self.assertIn(word, explained)
        self.assertIn("chosen", run("doctor").stdout)

    def test_inspect_takes_its_model_from_the_topmost_layer(self):
        env = {"INKLING_MODEL": "/nonexistent"}
        self.fails(3, "inspect", env=env, says="/nonexistent")
        for model in ([SAMPLE], ["-m", SAMPLE]):
            self.assertEqual(run("inspect", *model, "--no-hash", env=env).returncode, 0)

    def test_inspect_tells_programs_numbers(self):
        config = json.loads((SAMPLE / "config.json").read_text())
        for more, bits in ([], 16), (["--dtype", "f32"], 32), (["--quant", "int8"], None):
            facts = json.loads(run("inspect", "--no-hash", "--explain", "--output", "json", *more).stdout)
            self.assertEqual(list(facts), ["files", "config", "generation", "memory", "execution"])
            for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "eos_token_id"):
                self.assertEqual(facts["config"][name], config[name], name)
            self.assertAlmostEqual(facts["config"]["layer_norm_epsilon"] / config["layer_norm_epsilon"], 1, delta=1e-7)  # of one f32
            self.assertEqual(facts["generation"], {"first_id": 1, "end_ids": [1]})
            memory = facts["memory"]
            weights = {name: use for name, use in memory.items() if isinstance(use, dict) and "count" in use}
            self.assertEqual(sum(use["bytes"] for use in weights.values()), memory["all_weights"])
            self.assertEqual(weights["mlp_up"]["shape"], [192, 768])
            self.assertEqual(weights["norms_and_biases"], {"count": 2 + 6 * 8, "shape": None, "format": "f32", "bytes": 4 * 192 * (2 + 6 * 13)})
            if bits:
                self.assertEqual(weights["mlp_up"]["bytes"], 6 * 192 * 768 * bits // 8)
            self.assertEqual(memory["kv_whole_context"], 256 // memory["kv_page"]["tokens"] * memory["kv_page"]["bytes"])
            execution = facts["execution"]
            self.assertNotIn(execution["kernels"]["chosen"], execution["kernels"]["refused"])
            self.assertGreater(execution["load_ms"], 0)
            self.assertGreaterEqual(execution["threads"], 1)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
