"""Generating as a shell sees it: streams, formats, what changes no byte, signals, and texts to score.

    python3 tests/apps/generate_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
import unittest

from program import INKLING, PATIENCE, GOLDEN, SOURCE, run, Folder


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

    def test_batch_bounds_how_many_samples_run_together(self):
        def rows(*more):
            """The samples' ids, and the most rows of a step's products."""
            trace = self.folder / "trace.json"
            done = run("generate", "-p", "ROMEO:", "-N", 10, "-n", 4, "-s", 3, "--output", "json", "--trace", trace, *more)
            events = json.loads(trace.read_text())["traceEvents"]
            return [row["ids"] for row in json.loads(done.stdout)], max(e["args"]["rows"] for e in events if e["name"].startswith("linear"))
        together, most = rows()
        self.assertEqual((len(together), most), (10, 10))
        for batch in (2, 3, 8, 64):
            self.assertEqual(rows("--batch", batch), (together, min(batch, 10)))

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


class Texts(Folder):
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

    def test_detokenize_takes_numbers_or_a_json_array_and_nothing_between(self):
        text = run("detokenize", "812", "2007").stdout
        self.assertEqual(text, "ROMEO:")
        for words, stdin in (["[812,2007]"], ""), (["[812,", "2007]"], ""), ([" [812, 2007]\n"], ""), (["812\t2007"], ""), (["-"], "812\n2007\n"), ([], "[812,\n2007]\n"):
            self.assertEqual(run("detokenize", *words, stdin=stdin).stdout, text, words)
        self.assertEqual(run("detokenize", "[]").stdout, "")
        for words in ["[812, 2007"], ["]812,,[2007"], ["[[812"], ["[[812]]"], ["812,2007"], ["[812,,2007]"], ["[812] 2007"], ["[812.0]"], ["[-1]"], ["[2147483648]"]:
            self.fails(7, "detokenize", *words, says="ids: expected ")
        for words in ["-", "812"], ["812", "-"], ["-", "-"]:
            self.fails(2, "detokenize", *words, stdin="812", says="expected ids or - (standard input), got both")

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
        identity = lambda: (image.stat().st_ino, image.stat().st_mtime_ns)
        whole, kept = image.read_bytes(), identity()
        self.assertEqual(generate(), expected)
        self.assertEqual(identity(), kept)  # taken, not written again
        for damaged in (b"", whole[:50], whole[:-8], whole + b"x" * 8, bytes(64) + whole[64:], whole[:-9] + b"x" + whole[-8:]):
            image.write_bytes(damaged)
            self.assertEqual(generate(), expected)
            self.assertEqual(image.read_bytes(), whole)
        os.utime(source, (1, 1))
        self.assertEqual(generate(), expected)
        self.assertNotEqual(image.read_bytes(), whole)
        self.assertEqual(images(), [image])

    def test_perplexity_of_a_text(self):
        text = self.file("text.txt", "ROMEO:\nBut soft, what light through yonder window breaks?\n" * 30)
        args = ["eval", "--perplexity", text, "--stride", 64]
        row = json.loads(run(*args, "--output", "json").stdout)
        self.assertEqual(list(row), ["perplexity", "nll", "tokens", "window", "stride"])
        self.assertEqual((row["window"], row["stride"]), (256, 64))
        self.assertAlmostEqual(math.exp(row["nll"]), row["perplexity"], delta=1e-6 * row["perplexity"])
        self.assertEqual(run(*args).stdout, "".join(f"{name} {value}\n" for name, value in row.items()))
        self.assertEqual(run(*args, "--batch", 1, "--prefill-chunk", 7, "-t", 1).stdout, run(*args).stdout)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
