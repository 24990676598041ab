"""Two processes of an MPI job train as one process does. Wants a build with INKLING_MPI=ON, and mpirun.

    python3 tests/apps/mpi_test.py INKLING SOURCE_DIR
"""

import json
import re
import subprocess
import sys
import unittest

from program import command, environment, run, Folder

TEXT = "".join(f"ROMEO:\nBut soft, what light is {i * 7919 % 101}? It is the east!\n\n" for i in range(300))
SETTINGS = ["--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4, "--gradient-accumulation-steps", 2,
            "--dropout", 0.1, "--warmup-iters", 2, "--lr-decay-iters", 30, "--max-iters", 20, "--eval-iters", 2, "--eval-interval", 5,
            "--sample-tokens", 4, "-t", 1]


def mpirun(processes, *args):
    return subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(processes), *command(args)], capture_output=True,
                          text=True, env=environment(), timeout=120)


class Processes(Folder):
    def log(self, out):
        return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]

    def test_two_processes_are_one(self):
        data, one, two = self.file("text.txt", TEXT), self.folder / "one", self.folder / "two"
        alone = run("train", "--data", data, "--out-dir", one, *SETTINGS)
        self.assertEqual(alone.returncode, 0, alone.stderr)
        both = mpirun(2, "train", "--data", data, "--out-dir", two, *SETTINGS)
        self.assertEqual(both.returncode, 0, both.stderr)
        self.assertEqual(both.stderr.count("iter 20: training loss"), 1, both.stderr)  # one of them speaks
        self.assertEqual(len(self.log(one)), 5)
        for a, b in zip(self.log(one), self.log(two), strict=True):
            self.assertEqual(a["iter"], b["iter"])
            for loss in ("train_loss", "val_loss"):
                self.assertLessEqual(abs(a[loss] - b[loss]), 1e-6)

    def test_two_processes_go_on_to_the_bit_with_text_and_with_ids(self):
        ids = self.folder / "ids"
        ids.mkdir()
        for name in ("train.bin", "val.bin"):
            (ids / name).write_bytes(b"".join((i * i % 31).to_bytes(2, "little") for i in range(500)))
        for data in (self.file("text.txt", TEXT), ids):
            straight, parts = self.folder / f"straight-{data.name}", self.folder / f"parts-{data.name}"
            for out, *args in ((straight, *SETTINGS), (parts, *SETTINGS, "--max-iters", 10), (parts, "--init-from", "resume", "--max-iters", 20)):
                result = mpirun(2, "train", "--data", data, "--out-dir", out, *args)
                self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual((straight / "model.safetensors").read_bytes(), (parts / "model.safetensors").read_bytes())
        other = mpirun(2, "train", "--data", self.file("other.txt", TEXT + "more"), "--out-dir", self.folder / "parts-text.txt", "--init-from", "resume")
        self.assertNotEqual(other.returncode, 0)
        self.assertEqual(other.stderr.count("inkling: error: "), 1, other.stderr)
        self.assertIn("began with", other.stderr)

    def test_a_loss_that_is_no_number_is_saved_before_any_process_goes(self):
        out = self.folder / "out"
        result = mpirun(2, "train", "--data", self.file("text.txt", TEXT), "--out-dir", out, *SETTINGS, "--learning-rate", 1000, "--min-lr", 1000,
                        "--grad-clip", 0, "--n-layer", 12, "--warmup-iters", 0, "--weight-decay", 1000, "--eval-interval", 1000)
        failed = int(re.search(r"iteration (\d+): expected a finite loss", result.stderr)[1])
        self.assertGreater(failed, 0)
        self.assertEqual(max(p.name for p in (out / "checkpoints").iterdir()), f"iter-{failed:09}.safetensors")

    def test_batches_must_divide_among_them(self):
        data = self.file("text.txt", TEXT)
        result = mpirun(2, "train", "--data", data, "--out-dir", self.folder / "out", *SETTINGS, "--gradient-accumulation-steps", 3)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("expected a multiple of the 2 processes, got 3", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
