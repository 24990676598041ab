#!/usr/bin/env python3
"""Inkling side by side with llama.cpp, CTranslate2 and PyTorch on one random GPT-2 124M. README.md has the method.

    python tests/bench/peers.py --work FOLDER --tokenizer FOLDER --inkling build/release/bin/inkling

Writes FOLDER/peers.json (every measurement) and FOLDER/peers.md (the table).
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import peer_report
import peer_rows
from peer_engines import HERE, Broken, Engines

MAX_STEAL = 0.02  # of all CPU time in a measurement
MAX_FOREIGN = 0.05  # CPU time of processes other than the one measured
TRIES = 3


def cpu_ticks() -> tuple[int, int, int]:
    """(busy, stolen, all) ticks of the whole machine since boot."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    busy = user + nice + system + irq + softirq
    return busy, steal, busy + idle + iowait + steal


def wait_until_quiet(limit: float) -> None:
    """Returns when other processes use less than a tenth of the machine for half a second, or after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = cpu_ticks()
        time.sleep(0.5)
        busy, steal, total = (b - a for a, b in zip(before, cpu_ticks()))
        if busy + steal <= 0.1 * total:
            return
        time.sleep(0.5)


@contextlib.contextmanager
def locked(path: Path | None):
    """Holds a lock file during one measurement, so that builds that take it too wait, and never for long."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def watched(measure, options) -> dict:
    """One measurement, taken again while the machine was disturbed; the last try stays, marked, if none was clean."""
    for attempt in range(TRIES):
        if attempt > 0:
            wait_until_quiet(options.quiet_limit)
        with locked(options.lock):
            wait_until_quiet(min(5, options.quiet_limit))
            before = cpu_ticks()
            result = measure()
            busy, steal, total = (b - a for a, b in zip(before, cpu_ticks()))
        foreign = max(0, busy - result.pop("ticks"))
        result["steal"], result["foreign"] = round(steal / max(total, 1), 4), round(foreign / max(total, 1), 4)
        # Three ticks of 10 ms are rounding, not a disturbance.
        result["clean"] = steal <= max(3, MAX_STEAL * total) and foreign <= max(3, MAX_FOREIGN * total)
        result["tries"] = attempt + 1
        if result["clean"]:
            break
    return result


def describe_machine() -> dict:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    compiler = subprocess.run([os.environ.get("CXX", "g++"), "--version"], capture_output=True, text=True)
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "compiler": compiler.stdout.split("\n", 1)[0],
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def select_rows(options) -> list[peer_rows.Row]:
    groups = options.rows.split(",") if options.rows else None
    return [row for row in peer_rows.make_rows(options.threads, options.decode_tokens)
            if groups is None or row.group in groups or row.key in groups]


def measure_round(index: int, rows, families, engines: Engines, broken: dict, options) -> list[dict]:
    ceilings = watched(engines.ceilings, options)
    records = [{"round": index, "row": "ceilings", "engine": "machine"} | ceilings]
    for row in rows:
        if row.op == "memory" and index > 0:
            continue
        names = [name for name in row.engines if name.split("-", 1)[0] in families]
        turn = index % max(len(names), 1)  # each engine comes first in turn
        for name in names[turn:] + names[:turn]:
            if (row.op, name) in broken:
                continue
            try:
                engines.prepare(name, row)
                # Memory is the same in every round and whoever else is busy.
                result = (engines.measure(name, row) | {"clean": True} if row.op == "memory"
                          else watched(lambda: engines.measure(name, row), options))
            except Broken as error:
                broken[row.op, name] = str(error)
                print(f"{name} leaves {row.op}: {error}", file=sys.stderr)
                continue
            records.append({"round": index, "row": row.key, "engine": name} | result)
            mark = "" if result["clean"] else f"  disturbed (steal {result['steal']}, others {result['foreign']})"
            print(f"round {index + 1} {row.key:24} {name:16} {result['value']:9.2f}{mark}", file=sys.stderr, flush=True)
    return records


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, builds and results")
    parser.add_argument("--tokenizer", type=Path, help="folder with GPT-2's vocab.json, merges.txt, tokenizer.json")
    parser.add_argument("--inkling", type=Path, help="our binary; without it the peers run alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", help="groups or keys, e.g. decode,prefill (all: decode, prefill, prefill128, batch, "
                                       "decode1t, start, memory)")
    parser.add_argument("--engines", default=",".join(peer_rows.FAMILIES))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--decode-tokens", type=int, default=128)
    parser.add_argument("--lock", type=Path, help="lock file held (flock) while measuring")
    parser.add_argument("--quiet-limit", type=float, default=60, help="most seconds to wait for other processes to end")
    parser.add_argument("--out", default="peers", help="name of the .json and .md in the work folder")
    parser.add_argument("--render", type=Path, help="only makes the table of an earlier JSON file")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end with us
    if options.render:
        print(peer_report.table(json.loads(options.render.read_text())))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    models = options.work / "models"
    if options.tokenizer:
        import peer_models

        peer_models.make_models(models, options.tokenizer)
    elif not models.is_dir():
        sys.exit("the work folder has no models yet: give --tokenizer to make them")
    families = [name for name in options.engines.split(",") if name != "inkling" or options.inkling]
    engines = Engines(options.work, options.inkling, options.threads)
    engines.build()
    rows = select_rows(options)
    report = {"machine": describe_machine(), "threads": options.threads, "decode_tokens": options.decode_tokens,
              "limits": {"steal": MAX_STEAL, "foreign": MAX_FOREIGN}, "engines": engines.info, "left_out": [], "records": []}
    broken: dict = {}
    try:
        for index in range(options.rounds):
            report["records"] += measure_round(index, rows, families, engines, broken, options)
            report["left_out"] = [f"{name}, {op}: {why}" for (op, name), why in broken.items()]
            (options.work / f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.work / f"{options.out}.md").write_text(peer_report.table(report))
    finally:
        engines.close()
    print((options.work / f"{options.out}.md").read_text())


if __name__ == "__main__":
    main()
