"""The program as a shell sees it: streams, exit codes, formats, signals.

    python3 tests/apps/cli_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import csv
import hashlib
import json
import math
import os
import pathlib
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from program import INKLING, SOURCE, SAMPLE, PATIENCE, GOLDEN, command, environment, run, Folder


class Generate(Folder):
    def test_greedy_text_is_the_golden_one_and_alone_on_stdout(self):
        result = run("generate", "-p", "ROMEO:", "--temperature", 0, "-n", 64, "--dtype", "f32")
        self.assertEqual(result.stdout, "ROMEO:" + GOLDEN["text"] + "\n")
        self.assertIn("seed ", result.stderr)
        self.assertEqual(result.returncode, 0)
        quiet = run("generate", "-p", "ROMEO:", "--temperature", 0, "-n", 64, "--dtype", "f32", "-q", "--no-display-prompt")
        self.assertEqual((quiet.stdout, quiet.stderr), (GOLDEN["text"] + "\n", ""))

    def test_prompts_from_file_and_stdin(self):
        args = ["--temperature", 0, "-n", 8, "-q"]
        expected = run("generate", "-p", "ROMEO:", *args).stdout
        self.assertEqual(run("generate", "-f", self.file("p", "ROMEO:"), *args).stdout, expected)
        self.assertEqual(run("generate", "-p", "-", *args, stdin="ROMEO:").stdout, expected)
        self.assertEqual(run("generate", "-", *args, stdin="ROMEO:").stdout, expected)

    def test_the_seed_reported_reproduces_the_text(self):
        first = run("generate", "-p", "JULIET:", "-n", 30)
        seed = first.stderr.split("seed ")[1].split(",")[0]
        self.assertEqual(run("generate", "-p", "JULIET:", "-n", 30, "-s", seed).stdout, first.stdout)
        quiet = run("generate", "-p", "JULIET:", "-n", 30, "-q")  # nobody knows this one either
        seed = quiet.stderr.removeprefix("inkling: seed ").strip()
        self.assertEqual(run("generate", "-p", "JULIET:", "-n", 30, "-s", seed).stdout, quiet.stdout)

    def test_jsonl_has_the_promised_fields_in_input_order(self):
        prompts = self.file("p.jsonl", '{"id":"b","prompt":"ROMEO:","max_tokens":5,"seed":3}\n\n{"id":7,"ids":[812,2007]}\n')
        lines = run("generate", "--prompts", prompts, "--output", "jsonl", "-s", 9, "-n", 4).stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        self.assertEqual([row["id"] for row in rows], ["b", 7])
        self.assertEqual(list(rows[0]), ["id", "prompt_ids", "ids", "text", "finish_reason", "seed"])
        self.assertEqual([len(row["ids"]) for row in rows], [5, 4])
        self.assertEqual([row["seed"] for row in rows], [3, 9])
        self.assertEqual(rows[0]["prompt_ids"], [812, 2007])
        self.assertEqual(rows[0]["finish_reason"], "length")

    def test_batch_chunk_and_threads_change_no_byte(self):
        lines = [json.dumps({"id": i, "prompt": "KING: " * (i % 5 + 1), "seed": i, "max_tokens": 3 + i}) for i in range(12)]
        prompts = self.file("p.jsonl", "\n".join(lines))
        scores = self.file("s.jsonl", "\n".join(json.dumps({"id": i, "text": "To be, or not to be. " * (i + 1)}) for i in range(5)))
        for quant in (["--quant", "none"], ["--quant", "int8"], ["--quant", "int4"]):
            outputs, scored = set(), set()
            for more in ([], ["--batch", 1], ["--batch", 3, "--prefill-chunk", 2], ["-t", 1], ["-t", 3, "--batch", 20, "--prefill-chunk", 0]):
                outputs.add(run("generate", "--prompts", prompts, "--output", "jsonl", "--logprobs", 1, *quant, *more).stdout)
                scored.add(run("eval", "--score", scores, "--output", "jsonl", *quant, *more).stdout)
            self.assertEqual((len(outputs), len(scored)), (1, 1))
            self.assertEqual(outputs.pop().count("\n"), 12)

    def test_stop_strings_end_the_text_before_them(self):
        result = run("generate", "-p", "ROMEO:", "--temperature", 0, "-n", 64, "-q", "--stop", "my lord,", "--no-display-prompt")
        self.assertEqual(result.stdout, "\nI'll not, \n")
        rows = json.loads(run("generate", "-p", "ROMEO:", "--temperature", 0, "--stop", "my lord,", "--output", "json").stdout)
        self.assertEqual(rows[0]["finish_reason"], "stop")

    def test_samples_are_separated(self):
        self.assertEqual(run("generate", "-p", "ROMEO:", "-N", 3, "-n", 5, "-s", 1, "-q").stdout.count("---\n"), 2)

    def test_overflow_is_never_silent(self):
        prompt = "word " * 200
        self.fails(7, "generate", "-p", prompt, says="positions, but there are 256")
        for policy in ("truncate-left", "slide"):
            result = run("generate", "-p", prompt, "--on-overflow", policy, "-n", 100, "-s", 1)
            self.assertEqual(result.returncode, 0)
            self.assertIn("tokens were dropped", result.stderr)

    def test_output_is_valid_utf8_even_when_tokens_are_not(self):
        # A byte-fallback token alone is half a character.
        bad = json.dumps({"ids": [812], "max_tokens": 40})
        prompts = self.file("p.jsonl", bad)
        out = subprocess.run([INKLING, "generate", "--prompts", prompts, "--output", "jsonl", "--temperature", "50", "--top-k", "0",
                              "--top-p", "1"], capture_output=True, check=True).stdout
        out.decode("utf-8")

    def test_raw_bytes_are_the_tokens_bytes(self):
        first = run("tokenize", "--ids", "\u4f60").stdout.split()[-3]  # of the three bytes of a character
        args = ["generate", "-p", "a", "-n", 2, "-q", "--no-display-prompt", "--temperature", 0, "-l", first + "+10000"]
        raw, text = run(*args, "--raw-bytes", text=False).stdout, run(*args, text=False).stdout
        self.assertEqual(raw, b"\xe4" * 2)
        self.assertEqual(text.decode(), "\ufffd" * 2 + "\n")
        self.fails(2, *args, "--raw-bytes", "--output", "json", says="--raw-bytes: expected --output text")

    def test_odd_prompts_and_lengths(self):
        row = json.loads(run("generate", "-p", "", "-n", 3, "-s", 1, "--output", "json").stdout)[0]
        self.assertEqual(row["prompt_ids"], [1])  # the token that begins and ends texts
        nothing = run("generate", "-p", "ROMEO:", "-n", 0, "-s", 1, "-q")
        self.assertEqual((nothing.returncode, nothing.stdout), (0, "ROMEO:\n"))
        whole = run("generate", "-p", "ROMEO:", "-c", 8, "-n", 7, "-s", 1, "--output", "json")
        self.assertEqual(len(json.loads(whole.stdout)[0]["ids"]), 7)
        self.fails(7, "generate", "-p", "ROMEO:", "-c", 8, "-n", 8, says="need 9 positions, but there are 8")
        self.fails(2, "generate", "-p", "ROMEO:", "-c", 257, says="256 positions, got 257")

    def test_samples_of_one_seed_do_not_depend_on_company(self):
        rows = json.loads(run("generate", "-p", "ROMEO:", "-N", 5, "-n", 9, "-s", 3, "--output", "json", "--batch", 2).stdout)
        self.assertEqual([row["sample"] for row in rows], list(range(5)))
        alone = json.loads(run("generate", "-p", "ROMEO:", "-n", 9, "-s", 3, "--output", "json").stdout)[0]
        self.assertEqual(rows[0]["ids"], alone["ids"])

    def test_logprobs_are_those_of_eval(self):
        row = json.loads(run("generate", "-p", "ROMEO:", "-n", 5, "-s", 3, "--output", "json", "--logprobs", 2).stdout)[0]
        self.assertEqual([each["id"] for each in row["logprobs"]], row["ids"])
        self.assertEqual([len(each["top"]) for each in row["logprobs"]], [2] * 5)
        scores = self.file("s.jsonl", json.dumps({"ids": row["prompt_ids"] + row["ids"]}))
        scored = json.loads(run("eval", "--score", scores).stdout)["logprobs"][2:]
        for each, other in zip(row["logprobs"], scored):
            self.assertAlmostEqual(each["logprob"], other, places=4)


class Signals(Folder):
    def endless(self):
        process = subprocess.Popen([INKLING, "generate", "-p", "ROMEO:", "-n", "100000000", "--on-overflow", "slide"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        os.read(process.stdout.fileno(), 1)  # it runs
        return process

    def test_ctrl_c_ends_at_a_token_with_130_within_half_a_second(self):
        process = self.endless()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        self.assertLess(time.monotonic() - start, 0.5 * PATIENCE)
        self.assertEqual(process.returncode, 130)
        out.decode("utf-8")
        self.assertIn(b"seed ", err)

    def test_a_reader_that_sleeps_cannot_hold_it(self):
        for signals, code in (([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)):
            process = self.endless()
            time.sleep(0.3)  # the pipe is full, the program waits in write()
            start = time.monotonic()
            for each in signals:
                process.send_signal(each)
            self.assertEqual(process.wait(timeout=20), code)
            self.assertLess(time.monotonic() - start, 0.5 * PATIENCE)

    def test_a_reader_that_leaves_is_no_error(self):
        result = subprocess.run(f"'{INKLING}' generate -p ROMEO: -n 2000 --on-overflow slide -q | head -c 5", shell=True,
                                capture_output=True, executable="/bin/bash")
        self.assertEqual((result.stdout, result.stderr), (b"ROMEO", b""))

    def test_a_full_disk_is_exit_8(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([INKLING, "generate", "-p", "ROMEO:", "-n", "5"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 8)
        self.assertIn("standard output: No space left on device", result.stderr)


class Terminal(Folder):
    def error(self, *more, env=None):
        """What a terminal on standard error is shown of a missing file."""
        keyboard, terminal = pty.openpty()
        done = subprocess.run(command(["generate", "-f", "/nonexistent", *more]), stdout=subprocess.PIPE, stderr=terminal, env=environment(env))
        os.close(terminal)
        said = os.read(keyboard, 4096).decode()
        os.close(keyboard)
        self.assertEqual((done.returncode, done.stdout), (3, b""))
        return said

    def test_colour_is_for_terminals_that_want_it(self):
        red = "\x1b[1;31merror:\x1b[0m"
        self.assertIn(red, self.error(env={"NO_COLOR": ""}))
        self.assertNotIn("\x1b", self.error(env={"NO_COLOR": "1"}))
        self.assertNotIn("\x1b", self.error("--color", "off", env={"NO_COLOR": ""}))
        self.assertIn(red, self.error("--color", "on", env={"NO_COLOR": "1"}))
        self.assertIn(red, run("generate", "-f", "/nonexistent", "--color", "on").stderr)
        self.assertNotIn("\x1b", run("generate", "-f", "/nonexistent", env={"NO_COLOR": ""}).stderr)


class BadInput(Folder):
    def test_flags(self):
        self.fails(2, "generate", "-p", "x", "--bogus", says="--bogus")
        self.fails(2, "generate", "-p", "x", "--top-p", "1.5", says="--top-p: expected a number from 0 to 1, got '1.5'")
        self.fails(2, "generate", "-p", "x", "--temperature", "nan", says="--temperature")
        self.fails(2, "generate", "-p", "x", "--preset", "gpt5", says="--preset")
        self.fails(2, "generate", "-p", "x", "--quant", "int3", says="--quant")
        self.fails(2, "generate", "-p", "x", "-l", "99999+1", says="logit_bias: expected ids below 2048")
        self.fails(2, "eval", says="--perplexity")
        self.fails(2, says="subcommand")

    def test_texts_that_are_no_utf8(self):
        self.fails(7, "generate", "-p", b"\xff", says="--prompt")
        self.fails(7, "generate", "-f", self.file("bad.txt", b"abc\xe2\x82"), says="offset 3")
        self.fails(7, "generate", "--prompts", self.file("p.jsonl", b'{"prompt":"\xff"}'), says="line 1")
        self.fails(2, "generate", "-p", "x", "--stop", b"\xff", says="--stop")

    def test_commands_and_their_sources(self):
        self.fails(2, "generat", says="generat")
        self.fails(2, "generate", says="--prompt TEXT")
        self.fails(2, "generate", "-p", "x", "-f", "y", says="got 2")
        self.fails(2, "generate", "-p", says="--prompt: expected a value")
        self.fails(2, "generate", "-p", "x", "--logprobs", 1, says="--output json")
        self.fails(2, "generate", "-p", "x", says="INKLING_TOP_K: expected", env={"INKLING_TOP_K": "many"})
        self.fails(2, "generate", "-p", "x", "--config", self.file("c.toml", "top_q = 1\n"), says="top-q")
        self.fails(3, "generate", "-p", "x", "--config", self.folder / "none.toml", says="none.toml")
        self.fails(2, "completion", "tcsh", says="bash, zsh and fish, got 'tcsh'")
        self.fails(2, "completion", "bash", "zsh", says="got 2")
        self.fails(2, "bench", "gemm", "--bogus", says="inkling bench gemm --help")
        self.fails(2, "inspect", SAMPLE, SAMPLE, says="expected one of MODEL and --model PATH, got 2")
        self.fails(7, "bench", "-p", 257, says="256 positions, got 257")

    def test_options_that_would_have_no_effect(self):
        texts = self.file("t.jsonl", '{"text":"ROMEO:"}')
        self.fails(2, "eval", "--score", texts, "--stride", 4, says="--stride: expected --perplexity beside it")
        self.fails(2, "bench", "--ceiling", "--output", "json", says="--ceiling: expected --output md or csv beside it, got json")
        self.fails(2, "bench", "--tokenizer", SAMPLE, says="--tokenizer: not an option here")
        self.fails(2, "doctor", "--attn-order", "math", says="--attn-order: expected --attn SHAPE beside it")

    def test_texts_to_score(self):
        self.fails(7, "eval", "--perplexity", self.file("short.txt", "a"), says="short.txt: perplexity: expected at least 2 tokens, got 1")
        self.fails(7, "eval", "--perplexity", self.file("bad.txt", b"abc\xff"), says="bad.txt: ")
        self.fails(7, "tokenize", "-f", self.file("bad.txt", b"abc\xff"), says="bad.txt: ")
        self.fails(2, "eval", "--perplexity", self.file("text.txt", "ROMEO:"), "--stride", 257, says="--stride: expected at most the window's 256 tokens, got 257")

    def test_devices_and_memory(self):
        self.fails(6, "generate", "-p", "x", "--device", "cuda:99", says="cuda was asked for, but")
        self.fails(5, "generate", "-p", "x", "--max-memory", "1000", says="limit is 1000")
        self.fails(2, "generate", "-p", "x", says="INKLING_CPU_ISA", env={"INKLING_CPU_ISA": "mmx"})

    def test_files(self):
        self.fails(3, "generate", "-p", "x", "-m", self.folder / "no-model")
        self.fails(3, "generate", "-f", self.folder / "no-file", says="no-file")
        self.fails(4, "inspect", self.broken(), says="model.safetensors")
        self.fails(4, "inspect", SAMPLE, "--verify", "sha256:" + "0" * 64, says="sha256")

    def broken(self):
        for name in ("config.json", "tokenizer.model"):
            self.file(name, (SAMPLE / name).read_bytes())
        self.file("model.safetensors", (SAMPLE / "model.safetensors").read_bytes()[:-1])
        return self.folder

    def test_records(self):
        for line, says in (("{", "expected JSON"), ("[1]", "expected an object"), ("{}", "'prompt' or 'ids'"),
                           ('{"ids":[-1]}', "ids: expected ids"), ('{"ids":[5000]}', "ids below 2048"),
                           ('{"prompt":5}', "prompt: expected a string"), ('{"prompt":"x","max_tokens":-1}', "max_tokens"),
                           ('{"prompt":"x","seed":1.5}', "seed"), ('{"promt":"x"}', "got 'promt'"),
                           ('{"prompt":"x","prompt":"y"}', "'prompt' occurs twice"), ('{"id":[],"prompt":"x"}', "id: expected")):
            prompts = self.file("p.jsonl", '{"prompt":"fine"}\n' + line)
            self.fails(7, "generate", "--prompts", prompts, "--output", "jsonl", says="line 2")
            self.fails(7, "generate", "--prompts", prompts, "--output", "jsonl", says=says)
        self.fails(7, "eval", "--score", self.file("s.jsonl", json.dumps({"ids": [1] * 257})), says="expected at most the context's 256 tokens, got 257")


class Others(Folder):
    def test_scores_have_nine_digits_and_null_first(self):
        scores = self.file("s.jsonl", '{"id":"x","ids":[812,2007,2]}\n{"text":""}\n')
        rows = [json.loads(line) for line in run("eval", "--score", scores, "--output", "jsonl", "--dtype", "f32").stdout.splitlines()]
        self.assertEqual(rows[0]["id"], "x")
        self.assertEqual(rows[0]["ids"], [812, 2007, 2])
        self.assertIsNone(rows[0]["logprobs"][0])
        self.assertTrue(all(x < 0 for x in rows[0]["logprobs"][1:]))
        self.assertEqual(rows[1]["logprobs"], [])

    def test_tokenize_and_detokenize_are_inverse(self):
        text = "ROMEO:\nIs the day so young?  \u2014 Ay \u4f60\u597d\n"
        ids = run("tokenize", "--ids", text).stdout
        self.assertEqual(run("detokenize", "--raw-bytes", *ids.split()).stdout, text)
        self.assertEqual(run("detokenize", "--raw-bytes", stdin=ids).stdout, text)
        tokens = json.loads(run("tokenize", "--json", "--offsets", text).stdout)
        self.assertEqual([t["id"] for t in tokens], [int(i) for i in ids.split()])
        self.assertEqual(tokens[-1]["end"], len(text.encode()))
        self.fails(7, "detokenize", "2048", says="2048")
        self.fails(7, "detokenize", stdin="12 x")

    def test_the_tokenizers_image_is_kept_used_and_never_trusted(self):
        vocabulary, cache = self.folder / "vocab", self.folder / "cache"
        words = "tokenizer", "train", "--vocab-size", 2048, "--min-frequency", 1, "--output", vocabulary, SOURCE / "README.md"
        self.assertEqual(run(*words).returncode, 0)
        source = vocabulary / "vocab.json"

        def generate(where=cache):
            result = run("generate", "-p", "To be, or", "-n", 8, "--temperature", 0, "--tokenizer", vocabulary, "--cache-dir", where, text=False)
            self.assertEqual((result.returncode, result.stderr.count(b"warn")), (0, 0), result.stderr)
            return result.stdout

        images = lambda: list(cache.glob("*.tokenizer"))
        expected = generate("none")
        self.assertEqual(generate(), expected)
        self.assertEqual(images(), [])  # so small a file is read in a moment
        source.write_text(source.read_text() + " " * 300_000)
        self.assertEqual(generate(), expected)
        (image,) = images()
        whole, kept = image.read_bytes(), image.stat()
        self.assertEqual(generate(), expected)
        self.assertEqual(image.stat(), kept)  # taken, not written again
        for damaged in (b"", whole[:50], whole[:-8], whole + b"x" * 8, bytes(64) + whole[64:], whole[:-9] + b"x" + whole[-8:]):
            image.write_bytes(damaged)
            self.assertEqual(generate(), expected)
            self.assertEqual(image.read_bytes(), whole)
        os.utime(source, (1, 1))
        self.assertEqual(generate(), expected)
        self.assertNotEqual(image.read_bytes(), whole)
        self.assertEqual(images(), [image])

    def test_environment_and_config_file_yield_to_flags(self):
        base = ["generate", "-p", "ROMEO:", "-s", "1", "-q", "--no-display-prompt", "--output", "json"]
        count = lambda result: len(json.loads(result.stdout)[0]["ids"])
        self.assertEqual(count(run(*base, env={"INKLING_MAX_TOKENS": "3"})), 3)
        self.assertEqual(count(run(*base, "-n", 4, env={"INKLING_MAX_TOKENS": "3"})), 4)
        config = self.file("inkling.conf", "# mine\nmax-tokens = 5\n")
        self.assertEqual(count(run(*base, "--config", config)), 5)
        self.assertEqual(count(run(*base, "--config", config, env={"INKLING_MAX_TOKENS": "3"})), 3)

    def test_config_file_has_sections_and_lists(self):
        config = self.file("inkling.toml", 'temperature = 0\nmax-tokens = 9\n[generate]\nmax_tokens = 60\nstop = ["my lord,", "zz"]\n')
        row = json.loads(run("generate", "-p", "ROMEO:", "--output", "json", "--config", config).stdout)[0]
        self.assertEqual((row["text"], row["finish_reason"]), ("\nI'll not, ", "stop"))

    def test_published_settings_yield_to_presets_and_flags(self):
        for name in ("config.json", "tokenizer.model", "model.safetensors"):
            self.file(name, (SAMPLE / name).read_bytes())
        self.file("generation_config.json", '{"max_new_tokens": 4, "do_sample": false}')
        base = ["generate", "-m", self.folder, "-p", "ROMEO:", "--output", "json"]
        count = lambda *more: len(json.loads(run(*base, *more).stdout)[0]["ids"])
        self.assertEqual((count(), count("--preset", "llama"), count("-n", 6)), (4, 128, 6))

    def test_config_sections_of_commands_below_commands(self):
        config = self.file("inkling.toml", "threads = 2\n[bench.gemm]\nthreads = 1\n")
        gemm = ["bench", "gemm", "--shapes", "8x8", "--rows", 1, "--formats", "f32", "-r", 1, "--output", "json", "--config"]
        self.assertEqual(json.loads(run(*gemm, config).stdout)[0]["threads"], 1)
        bench = json.loads(run("bench", "-p", 4, "-n", 0, "-r", 1, "--output", "json", "--config", config).stdout)
        self.assertEqual(bench[0]["threads"], 2)
        self.fails(2, *gemm, self.file("c.toml", "[gemm]\nthreads = 1\n"), says="[gemm] threads: expected")

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
        self.fails(7, "bench", "-p", 0, "-n", 4, "-d", 254, says="got 4 after 254")

    def test_bench_prints_tables(self):
        args = ["bench", "-p", 8, "-n", 2, "-r", 1, "--ceiling", "--output"]
        header, *rows = csv.reader(run(*args, "csv").stdout.splitlines())
        self.assertEqual((header[5], header[-1], [row[5] for row in rows]), ("test", "of ceiling", ["pp8", "tg2"]))
        for row in rows:
            self.assertGreater(float(row[7]), 0)
            self.assertRegex(row[-1], r"^(\d+%)?$")
        table = run(*args, "md").stdout.splitlines()
        self.assertEqual({line.count("|") for line in table}, {len(header) + 1})

    def test_perplexity_of_a_text(self):
        text = self.file("text.txt", "ROMEO:\nBut soft, what light through yonder window breaks?\n" * 30)
        args = ["eval", "--perplexity", text, "--stride", 64]
        row = json.loads(run(*args, "--output", "json").stdout)
        self.assertEqual(list(row), ["perplexity", "nll", "tokens", "window", "stride"])
        self.assertEqual((row["window"], row["stride"]), (256, 64))
        self.assertAlmostEqual(math.exp(row["nll"]), row["perplexity"], delta=1e-6 * row["perplexity"])
        self.assertEqual(run(*args).stdout, "".join(f"{name} {value}\n" for name, value in row.items()))
        self.assertEqual(run(*args, "--batch", 1, "--prefill-chunk", 7, "-t", 1).stdout, run(*args).stdout)

    def test_weights_are_verified_by_hash_and_manifest(self):
        weights = (SAMPLE / "model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        facts = json.loads(run("inspect", "--tensors", "--output", "json").stdout)
        self.assertEqual(facts["files"]["model.safetensors"], "sha256:" + digest)
        header = json.loads(weights[8:8 + int.from_bytes(weights[:8], "little")])
        self.assertEqual(set(facts["tensors"]), set(header) - {"__metadata__"})
        for good in ("sha256:" + digest, self.file("good", digest + "  model.safetensors\n")):
            self.assertEqual(run("generate", "-p", "x", "-n", 1, "--verify", good).returncode, 0)
        self.fails(4, "generate", "-p", "x", "--verify", self.file("bad", "0" * 64 + "  model.safetensors\n"), says="model.safetensors")

    def test_inspect_and_doctor_explain(self):
        explained = run("inspect", "--explain").stdout
        for word in ("parameters", "3111936", "sha256", "refused", "kv cache"):
            self.assertIn(word, explained)
        self.assertIn("chosen", run("doctor").stdout)

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
                    self.assertGreater(e["args"]["flops"], 0)
            self.assertEqual(os.listdir(folder), ["trace.json"])
            done = run("bench", "gemm", "--shapes", "8x8", "--rows", 1, "--formats", "f32", "-r", 1, "--profile")
            self.assertIn("linear 8x8", done.stderr)
        done = run("generate", "-p", "a", "--trace", "/nonexistent/trace.json")
        self.assertEqual((done.returncode, done.stdout), (8, ""))
        self.assertIn("/nonexistent/trace.json", done.stderr)

    def commands(self, *above):
        """Every command, read off the help of those above it."""
        lines = run(*above, "--help").stdout.splitlines()
        yield above, lines
        if "Commands:" in lines:
            for line in lines[lines.index("Commands:") + 1:]:
                if not line.startswith("  "):
                    break
                yield from self.commands(*above, line.split()[0])

    def test_help_fits_a_screen(self):
        commands = dict(self.commands())
        self.assertLessEqual({(), ("generate",), ("bench", "sdpa"), ("tokenizer", "train")}, set(commands))
        for command, lines in commands.items():
            self.assertLessEqual(len(lines), 50, command)
            self.assertLessEqual(max(map(len, lines)), 100, command)
            self.assertEqual([line for line in lines if line.endswith(" ")], [], command)

    def test_completion_in_bash(self):
        script = run("completion", "bash").stdout
        def complete(*words):
            ask = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _inkling; echo ${{COMPREPLY[*]}}"
            done = subprocess.run(["bash"], input=script + ask, text=True, capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            return done.stdout.split()
        self.assertEqual(complete("inkling", "gen"), ["generate"])
        self.assertEqual(complete("inkling", "generate", "--max-"), ["--max-tokens", "--max-new-tokens", "--max-memory"])
        self.assertEqual(complete("inkling", "bench", "ge"), ["gemm"])
        self.assertEqual(complete("inkling", "bench", "gemm", "-t", "1", "--sh"), ["--shapes"])
        self.assertEqual(complete("inkling", "completion", "f"), ["fish"])

    def test_completion_for_other_shells(self):
        self.assertTrue(run("completion", "zsh").stdout.startswith("autoload -U +X bashcompinit"))
        self.assertIn("complete -c inkling -n '__fish_seen_subcommand_from generate' -l max-tokens -r -d 'new tokens at most [128]'",
                      run("completion", "fish").stdout)


class Readme(Folder):
    def test_every_example_of_the_readme_runs(self):
        (self.folder / "prompts.jsonl").write_text('{"id":1,"prompt":"ROMEO:"}\n')
        (self.folder / "texts.jsonl").write_text('{"id":1,"text":"ROMEO: I come."}\n')
        (self.folder / "text.txt").write_text("To be, or not to be: that is the question.\n" * 20)
        (self.folder / "input.txt").write_text("ROMEO:\nO, she doth teach the torches to burn bright!\n\n" * 60)
        (self.folder / "mine.jsonl").write_text('{"text":"ROMEO: I come, anon, and we shall see what we shall see."}\n' * 40)
        text = (SOURCE / "README.md").read_text()
        examples = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("inkling ")]
        self.assertGreater(len(examples), 7)
        for words in (shlex.split(" ".join(each)) for each in examples):
            replaced = [str(SAMPLE) if word in ("FOLDER", "models/gpt2") else word.replace("512", "32").replace("128", "8") for word in words]
            if words[1] == "train":  # a few iterations tell as much
                replaced = [word.replace("4000", "4") for word in replaced] + ([] if "--max-iters" in words else ["--max-iters", "2"])
                replaced += ["--eval-iters", "1", "--batch-size", "2"]
            place = self.folder
            if "cuda" in words:  # the same on whatever is here, beside the example for a CPU
                place = self.folder / "gpu"
                place.mkdir()
                (place / "input.txt").symlink_to(self.folder / "input.txt")
                replaced = ["auto" if word == "cuda" else word for word in replaced]
            result = subprocess.run([INKLING, *replaced[1:]], cwd=place, capture_output=True, text=True, timeout=120)
            self.assertEqual(result.returncode, 0, (words, result.stderr))
            self.assertTrue(result.stdout or words[1:3] == ["tokenizer", "train"])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
