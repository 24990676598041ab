"""Engines as processes: living workers for the peers, one run of the binary per measurement for inkling."""

import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from peer_rows import Row

HERE = Path(__file__).parent
PROMPT = "The dog"
CLOCK_HZ = os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """An engine that cannot do a row: the row goes on without it."""


def process_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def run_process(command: list[str], log: Path, env: dict | None = None) -> dict:
    """Runs to the end: stdout, wall seconds, CPU ticks and peak resident memory of that process alone."""
    start = time.monotonic()
    with log.open("a") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env=env)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Broken(f"{Path(command[0]).name} left with {process.returncode}")
    return {
        "out": out.decode("utf-8", "replace"),
        "start": start,
        "wall": wall,
        "ticks": round((usage.ru_utime + usage.ru_stime) * CLOCK_HZ),
        "rss_mb": usage.ru_maxrss * 1024 / 1e6,
    }


class Worker:
    """peer_worker.py with one loaded model; stopped by SIGSTOP whenever it is not measuring, so that it cannot spin."""

    def __init__(self, name: str, models: Path, threads: int, log: Path):
        self.threads = threads
        with log.open("a") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "peer_worker.py"), name, str(models), str(threads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True)
        self.info = self.read()
        self.process.send_signal(signal.SIGSTOP)

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise Broken(f"worker left with {self.process.wait()}")
        return json.loads(line)

    def ask(self, **command) -> dict:
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            return self.read()
        except BrokenPipeError:
            raise Broken(f"worker left with {self.process.wait()}") from None
        finally:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.close()
            self.process.wait()


class Engines:
    """Knows how to measure any row on any engine. prepare(), then measure() = {"value", "ticks", ...} in tok/s, s or MB."""

    def __init__(self, work: Path, inkling: Path | None, threads: int):
        self.work, self.models, self.inkling, self.threads = work, work / "models", inkling, threads
        self.log = work / "engines.log"
        self.workers: dict[str, Worker] = {}
        self.info: dict[str, dict] = {}
        self.first_token = work / "first_token_llama"
        self.packed = set()  # variants of Inkling whose packed weights are on disk

    def build(self) -> None:
        cxx, cc = os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc")
        subprocess.run([cxx, "-O3", "-std=c++20", "-march=native", "-pthread", str(HERE / "ceilings.cpp"),
                        "-o", str(self.work / "ceilings")], check=True)
        packages = Path(sysconfig.get_paths()["platlib"])
        if (packages / "include" / "llama.h").exists():
            lib = packages / "llama_cpp" / "lib"
            libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{lib}"]
            subprocess.run([cc, "-O2", str(HERE / "first_token_llama.c"), f"-I{packages / 'include'}", f"-L{lib}",
                            *libraries, "-o", str(self.first_token)], check=True)

    def ceilings(self) -> dict:
        done = run_process([str(self.work / "ceilings"), str(self.threads)], self.log)
        return {"value": json.loads(done["out"]), "ticks": done["ticks"]}

    def measure(self, name: str, row: Row) -> dict:
        family, variant = name.split("-", 1)
        if row.op == "start":
            return self.start(family, variant, row)
        if row.op == "memory":
            return self.memory(family, variant, row)
        return self.inkling_bench(variant, row) if family == "inkling" else self.worker_bench(name, row)

    # ---- tokens a second ----

    def prepare(self, name: str, row: Row) -> None:
        """Loads what measure() will use, outside the window whose CPU time is watched."""
        if row.smaller_is_better or name.startswith("inkling-"):
            return
        if name not in self.workers:
            self.workers[name] = Worker(name, self.models, self.threads, self.log)
            self.info[name] = self.workers[name].info
        worker = self.workers[name]
        if worker.threads != row.threads:
            worker.ask(op="threads", n=row.threads)
            worker.threads = row.threads

    def worker_bench(self, name: str, row: Row) -> dict:
        worker = self.workers[name]
        before = process_ticks(worker.process.pid)
        reply = worker.ask(op=row.op, n=row.n, batch=row.batch, reps=row.reps)
        rates = [row.n * row.batch / seconds for seconds in reply["seconds"]]
        return {"value": statistics.median(rates), "ticks": process_ticks(worker.process.pid) - before}

    def inkling_flags(self, variant: str) -> list[str]:
        dtype, quant = ("bf16" if variant == "bf16" else "f32"), (variant if variant.startswith("int") else "none")
        return ["-m", str(self.models / f"hf-{dtype}"), "--dtype", dtype, "--quant", quant,
                "--cache-dir", str(self.models / "packed")]

    def inkling_run(self, command: str, variant: str, threads: int, flags: list[str]) -> dict:
        if self.inkling is None:
            raise Broken("no binary given")
        if variant not in self.packed:  # as after a first start
            self.packed.add(variant)
            run_process([str(self.inkling), "generate", *self.inkling_flags(variant), "-p", PROMPT, "-n", "1", "-q"], self.log)
        return run_process([str(self.inkling), command, *self.inkling_flags(variant), "-t", str(threads), *flags], self.log)

    def inkling_bench(self, variant: str, row: Row) -> dict:
        prompt, generated = (row.n, 0) if row.op == "prefill" else (0, row.n)
        flags = ["-p", str(prompt), "-n", str(generated), "-b", str(row.batch), "-r", str(row.reps), "--output", "json"]
        done = self.inkling_run("bench", variant, row.threads, flags)
        test = f"pp{row.n}" if row.op == "prefill" else f"tg{row.n}"
        for result in json.loads(done["out"]):
            if result["test"] == test and result["batch"] == row.batch:
                self.info[f"inkling-{variant}"] = {k: result.get(k) for k in ("isa", "load_ms", "rss_mb")}
                return {"value": result["tok_per_s"]["median"], "ticks": done["ticks"]}
        raise Broken(f"inkling bench printed no {test} at batch {row.batch}")

    # ---- whole processes ----

    def start(self, family: str, variant: str, row: Row) -> dict:
        """Seconds from spawning the process to its end; for Python engines from the end of the imports to the token."""
        if family == "inkling":
            flags = ["-p", PROMPT, "-n", "1", "--temperature", "0", "-q"]
            done = self.inkling_run("generate", variant, row.threads, flags)
            return {"value": done["wall"], "ticks": done["ticks"]}
        if family == "llama":
            done = self.llama_process(variant, row, PROMPT)
            return {"value": done["wall"], "ticks": done["ticks"]}
        command = [sys.executable, str(HERE / "peer_worker.py"), f"{family}-{variant}", str(self.models), str(row.threads)]
        done = run_process(command + ["--once"], self.log)
        reply = json.loads(done["out"])
        return {"value": reply["token_at"] - reply["imported_at"], "ticks": done["ticks"],
                "with_imports": reply["token_at"] - done["start"]}

    def llama_process(self, variant: str, row: Row, *arguments: str) -> dict:
        if not self.first_token.exists():
            raise Broken("llama.h is not among the installed packages")
        return run_process([str(self.first_token), str(self.models / f"{variant}.gguf"), str(row.threads), *arguments],
                           self.log)

    def memory(self, family: str, variant: str, row: Row) -> dict:
        """Peak resident MB of a fresh process that prefills 512 tokens and decodes 128."""
        if family == "inkling":
            flags = ["-p", "512", "-n", "128", "-b", "1", "-r", "1", "--output", "json"]
            done = self.inkling_run("bench", variant, row.threads, flags)
            return {"value": done["rss_mb"], "ticks": done["ticks"]}
        if family == "llama":
            done = self.llama_process(variant, row, "", "512", "128")
            return {"value": done["rss_mb"], "ticks": done["ticks"]}
        worker = Worker(f"{family}-{variant}", self.models, row.threads, self.log)
        worker.ask(op="prefill", n=512)
        peak = worker.ask(op="decode", n=128)["peak_rss_mb"]
        ticks = process_ticks(worker.process.pid)
        worker.close()
        return {"value": peak, "ticks": ticks, "interpreter_mb": worker.info["baseline_rss_mb"]}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
