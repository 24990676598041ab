"""What the tests of the program share: INKLING and SOURCE_DIR come from the command line."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

INKLING, SOURCE = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).absolute()
SAMPLE = SOURCE / "weights" / "sample"
PATIENCE = 10 if os.environ.get("CI") or "sanitizers" in subprocess.run([INKLING, "--version"], capture_output=True, text=True).stdout else 2
GOLDEN = json.loads((SAMPLE / "golden.json").read_text())


def command(args):
    return [INKLING, *(each if isinstance(each, bytes) else str(each) for each in args)]


def environment(env=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INKLING_")}
    return {**clean, "XDG_CONFIG_HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", **(env or {})}


def run(*args, stdin="", env=None, text=True, **more):
    return subprocess.run(command(args), input=stdin if text else stdin.encode(), capture_output=True, text=text,
                          env=environment(env), timeout=120, **more)


def popen(*args):
    return subprocess.Popen(command(args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment())


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def fails(self, code, *args, says="", **more):
        result = run(*args, **more)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("inkling: error: "), 1, result.stderr)
        self.assertIn(says, result.stderr)
        return result.stderr
