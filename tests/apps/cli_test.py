"""The program as a shell sees it: settings and their order, bad input and exit codes, help, completion, the examples of the README.

    python3 tests/apps/cli_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import json
import os
import pty
import shlex
import subprocess
import sys
import unittest

from program import INKLING, SOURCE, SAMPLE, command, environment, run, Folder


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
        self.fails(2, "generate", "-p", "x", "-l", "99999+1", says="error: --logit-bias: expected ids below 2048, got 99999")
        self.fails(2, "generate", "--prompts", self.file("p.jsonl", '{"prompt":"x"}'), "-l", "99999+1", says="error: --logit-bias: ")
        self.fails(2, "generate", "-p", "x", "--verify", "sha256:00", says="error: --verify: expected sha256: and 64")
        self.fails(2, "eval", says="--perplexity")
        self.fails(2, says="subcommand")

    def test_texts_that_are_no_utf8(self):
        self.fails(7, "generate", "-p", b"\xff", says="--prompt")
        self.fails(7, "generate", "-f", self.file("bad.txt", b"abc\xe2\x82"), says="offset 3")
        self.fails(7, "generate", "--prompts", self.file("p.jsonl", b'{"prompt":"\xff"}'), says="line 1")
        self.fails(2, "generate", "-p", "x", "--stop", b"\xff", says="--stop")
        for words in (["generate", "-"], ["generate", "-f", "-"], ["tokenize", "-"], ["eval", "--perplexity", "-"]):
            done = subprocess.run([INKLING, *words], input=b"abc\xff", capture_output=True, env=environment())
            self.assertEqual((done.returncode, done.stdout), (7, b""), words)
            self.assertIn(b"inkling: error: standard input: ", done.stderr)

    def test_commands_and_their_sources(self):
        self.fails(2, "generat", says="error: generat: not a command or an option here (see inkling --help)")
        self.fails(2, "generate", "--foo", "--bar", says="error: --foo --bar: not an option here (see inkling generate --help)")
        self.fails(2, "doctor", "-m", "x", says="error: -m x: not an option here (see inkling doctor --help)")
        self.fails(2, "bench", "sdpa", "x", "y", says="error: x y: not an argument here (see inkling bench sdpa --help)")
        self.fails(2, "generate", says="--prompt TEXT")
        self.fails(2, "generate", "-p", "x", "-f", "y", says="got 2")
        for more in (["-p", "JULIET:"], ["-p", "-"], ["-"], ["--prompts", "y"]):
            self.fails(2, "generate", "-p", "ROMEO:", *more, says="got 2")
        for command in (["generate", "-f"], ["generate", "--prompts"], ["tokenize", "-f"], ["eval", "--score"], ["eval", "--perplexity"]):
            self.fails(2, *command, "a", command[-1], "b", says=": expected one path, got 'a' and 'b'")
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
        self.fails(2, "bench", "--tokenizer", SAMPLE, says=f"--tokenizer {SAMPLE}: not an option here")
        self.fails(2, "doctor", "--attn-order", "math", says="--attn-order: expected --attn SHAPE beside it")

    def test_texts_to_score(self):
        self.fails(7, "eval", "--perplexity", self.file("short.txt", "a"), says="short.txt: perplexity: expected at least 2 tokens, got 1")
        self.fails(7, "eval", "--perplexity", self.file("bad.txt", b"abc\xff"), says="bad.txt: ")
        self.fails(7, "tokenize", "-f", self.file("bad.txt", b"abc\xff"), says="bad.txt: ")
        self.fails(2, "eval", "--perplexity", self.file("text.txt", "ROMEO:"), "--stride", 257, says="--stride: expected at most the window's 256 tokens, got 257")

    def test_devices_and_memory(self):
        self.fails(6, "generate", "-p", "x", "--device", "cuda:99", says="cuda was asked for, but")
        self.fails(2, "generate", "-p", "x", says="INKLING_CPU_ISA", env={"INKLING_CPU_ISA": "mmx"})

    def test_a_limit_of_memory_holds_for_weights_keys_and_values_and_is_named(self):
        memory = json.loads(run("inspect", "--no-hash", "--output", "json").stdout)["memory"]
        weights, page = memory["all_weights"], memory["kv_page"]["bytes"]
        texts = self.file("t.jsonl", "".join(json.dumps({"ids": [1 + i] * length}) + "\n" for i, length in enumerate((60, 5, 120, 30))))
        commands = ["generate", "-p", "x", "-n", 65], ["eval", "--score", texts], ["bench", "-p", 65, "-n", 0, "-r", 1]
        for command in commands:
            self.fails(5, *command, "--max-memory", 1000, says="but the limit is 1000 (--max-memory 1000)")
            self.fails(5, *command, "--max-memory", weights - 1, says=f"weights need {weights} bytes as bf16, but the limit is {weights - 1}")
            self.fails(5, *command, "--max-memory", weights, says=f"(--max-memory {weights}, of which weights take {weights})")
            self.fails(5, *command, "--max-memory", weights + page, says=f"(--max-memory {weights + page}, of which weights take {weights})")
        short = ["generate", "-p", "x", "-n", 5, "-s", 1, "-q"]
        self.assertEqual(run(*short, "--max-memory", weights + page).stdout, run(*short).stdout)
        # Texts are scored one by one where only one has room.
        for room in (2, 3, 4):
            self.assertEqual(run("eval", "--score", texts, "--max-memory", weights + room * page).stdout, run("eval", "--score", texts).stdout)
        self.fails(5, "eval", "--score", texts, "--max-memory", weights + page, says=f"sequence 2: 119 positions need {2 * page} bytes, but the limit is {page} ")
        self.fails(5, "eval", "--perplexity", self.file("t.txt", "To be. " * 200), "--max-memory", weights + page, says="--max-memory")

    def test_files(self):
        for path in (self.folder / "no-model", "weights/sampel", "sampel", "/nope"):
            for command in (["generate", "-p", "x"], ["eval", "--perplexity", "x"], ["bench"], ["inspect"], ["tokenize", "x"], ["detokenize", "1"]):
                self.fails(3, *command, "-m", path, says=f"error: {path}: ")
        self.fails(3, "generate", "-f", self.folder / "no-file", says="no-file")
        self.fails(4, "inspect", self.broken(), says="model.safetensors")
        self.fails(4, "inspect", SAMPLE, "--verify", "sha256:" + "0" * 64, says="sha256")

    def test_a_tokenizer_that_is_missing_is_no_fault_of_a_record(self):
        lines = self.file("l.jsonl", '{"prompt":"x"}'), self.file("t.jsonl", '{"text":"x"}')
        for command in (["generate", "--output", "jsonl", "--prompts", lines[0]], ["eval", "--score", lines[1]]):
            self.fails(3, *command, "--tokenizer", "/nope", says="error: /nope: ")

    def test_a_tokenizer_that_is_larger_than_the_model(self):
        self.file("meta.json", json.dumps({"stoi": {chr(0x4e00 + i): i for i in range(2049)}}))
        says = f"{self.folder}: vocabulary: expected at most the model's 2048 tokens, got 2049"
        self.fails(4, "generate", "-p", "\u4e00", "--tokenizer", self.folder, says=says)
        told = run("inspect", "--tokenizer", self.folder, "--no-hash")
        self.assertEqual(told.returncode, 0)
        self.assertIn("; refused: " + says, told.stdout)

    def test_a_published_setting_out_of_range_is_named_with_its_file(self):
        for name in ("config.json", "tokenizer.model", "model.safetensors"):
            self.file(name, (SAMPLE / name).read_bytes())
        self.file("generation_config.json", '{"temperature": 1e30}')
        self.fails(4, "generate", "-m", self.folder, "-p", "x", says="generation_config.json: temperature: expected a number from 0 to 10000")
        self.assertEqual(run("generate", "-m", self.folder, "-p", "x", "-n", 1, "--temperature", 1).returncode, 0)

    def broken(self):
        for name in ("config.json", "tokenizer.model"):
            self.file(name, (SAMPLE / name).read_bytes())
        self.file("model.safetensors", (SAMPLE / "model.safetensors").read_bytes()[:-1])
        return self.folder

    def test_records(self):
        for line, says in (("{", "expected JSON"), ("[1]", "expected an object"), ("{}", "expected one of the fields prompt and ids, got none"),
                           ('{"prompt":"x","ids":[1]}', "expected one of the fields prompt and ids, got both"),
                           ('{"ids":[-1]}', "ids: expected ids"), ('{"ids":[5000]}', "ids below 2048"),
                           ('{"prompt":5}', "prompt: expected a string"), ('{"prompt":"x","max_tokens":-1}', "max_tokens"),
                           ('{"prompt":"x","seed":1.5}', "seed"), ('{"promt":"x"}', "got 'promt'"),
                           ('{"prompt":"x","prompt":"y"}', "'prompt' occurs twice"), ('{"id":[],"prompt":"x"}', "id: expected"),
                           ('{"ids":[]}', "line 2: ids: expected at least one, got none"),
                           ('{"ids":[1,2048]}', "line 2: ids: expected ids below 2048, got 2048 at [1]"),
                           ('{"id":12345678901234567890123,"prompt":"x"}', "id: expected a string or a whole number of 64 bits"),
                           ('{"id":1.0e2,"prompt":"x"}', "id: expected a string or a whole number of 64 bits, got 100.0")):
            prompts = self.file("p.jsonl", '{"prompt":"fine"}\n' + line)
            self.fails(7, "generate", "--prompts", prompts, "--output", "jsonl", says="line 2")
            self.fails(7, "generate", "--prompts", prompts, "--output", "jsonl", says=says)
        self.fails(7, "eval", "--score", self.file("s.jsonl", json.dumps({"ids": [1] * 257})), says="expected at most the context's 256 tokens, got 257")
        path = self.file("q.jsonl", '{"text":5}')
        self.fails(7, "eval", "--score", path, says=f"error: {path}: line 1: text: expected a string, got 5")
        self.fails(7, "eval", "--score", self.file("i.jsonl", '{"ids":[3,2048]}'), says="line 1: ids: expected ids below 2048, got 2048 at [1]")

    def test_ids_of_records_come_back_as_they_were_given(self):
        ids = ['"b"', "7", "-9223372036854775808", "18446744073709551615", '"\u00e4"']
        prompts = self.file("p.jsonl", "\n".join(f'{{"id":{id},"prompt":"x","max_tokens":0}}' for id in ids))
        rows = run("generate", "--prompts", prompts, "--output", "jsonl").stdout.splitlines()
        self.assertEqual([json.loads(row)["id"] for row in rows], [json.loads(id) for id in ids])


class Settings(Folder):
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

    def published(self, settings):
        """Arguments that continue a text with the sample model and this generation_config.json beside it."""
        for name in ("config.json", "tokenizer.model", "model.safetensors"):
            self.file(name, (SAMPLE / name).read_bytes())
        self.file("generation_config.json", json.dumps(settings))
        return ["generate", "-m", self.folder, "-p", "ROMEO:", "--output", "json"]

    def test_published_ends_end_a_text(self):
        greedy = ["--temperature", 0, "-n", 12]
        row = lambda ends: json.loads(run(*self.published({"eos_token_id": ends}), *greedy).stdout)[0]
        whole = json.loads(run("generate", "-p", "ROMEO:", "--output", "json", *greedy).stdout)[0]
        self.assertEqual((len(whole["ids"]), whole["finish_reason"]), (12, "length"))
        end = whole["ids"][1]
        for ends in (end, [end], [9, end]):
            self.assertEqual((row(ends)["ids"], row(ends)["finish_reason"]), (whole["ids"][:2], "eos"))
        self.fails(4, *self.published({"eos_token_id": [end, 99999]}),
                   says="generation_config.json: eos_token_id: expected 0 to 2047, got 99999")

    def test_published_settings_yield_to_presets_and_flags(self):
        base = self.published({"max_new_tokens": 4, "do_sample": False})
        count = lambda *more: len(json.loads(run(*base, *more).stdout)[0]["ids"])
        self.assertEqual((count(), count("--preset", "llama"), count("-n", 6)), (4, 128, 6))

    def test_config_sections_of_commands_below_commands(self):
        config = self.file("inkling.toml", "threads = 2\n[bench.gemm]\nthreads = 1\n")
        gemm = ["bench", "gemm", "--shapes", "8x8", "--rows", 1, "--formats", "f32", "-r", 1, "--output", "json", "--config"]
        self.assertEqual(json.loads(run(*gemm, config).stdout)[0]["threads"], 1)
        bench = json.loads(run("bench", "-p", 4, "-n", 0, "-r", 1, "--output", "json", "--config", config).stdout)
        self.assertEqual(bench[0]["threads"], 2)
        self.fails(2, *gemm, self.file("c.toml", "[gemm]\nthreads = 1\n"), says="[gemm] threads: expected")


class Help(Folder):
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
