#!/usr/bin/env python3
"""Attention beside PyTorch's, interleaved in one run: forward, backward, packed lengths, decode.

    python sdpa.py --inkling build/release/bin/inkling [--rounds 5] [--json FILE]

Wants PyTorch. Both sides run on --threads threads; a round measures Inkling, then PyTorch, row by row; the table shows the
median of the rounds and of their ratios. PyTorch's best is the fastest of what it has for the row: its fused kernel, its math
path, and for packed lengths nested tensors or padding.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

LENGTHS = [512 * (2 * b + 1) // 32 for b in range(16)]  # half of 16 x 512
# name, arguments of `inkling bench sdpa`, (B, H, Tq, Tk, D), dtype, causal, goal
ROWS = [
    ("(1,12,1024,64) causal f32", ["--heads", 12, "--length", 1024, "--mask", "causal-upper-left"], (1, 12, 1024, 1024, 64), "f32", True, 1.3),
    ("(1,12,1024,64) causal bf16", ["--heads", 12, "--length", 1024, "--mask", "causal-upper-left"], (1, 12, 1024, 1024, 64), "bf16", True, 1.3),
    ("(8,8,512,64) full f32", ["-b", 8, "--heads", 8, "--length", 512, "--mask", "none"], (8, 8, 512, 512, 64), "f32", False, 1.3),
    ("packed, half of (16,8,512,64) causal f32", ["--varlen", ",".join(map(str, LENGTHS)), "--heads", 8, "--mask", "causal-upper-left"],
     LENGTHS, "f32", True, 1.6),
    ("decode (32,12,1,64) kv 1024 f32", ["-b", 32, "--heads", 12, "--q-length", 1, "--k-length", 1024, "--mask", "none"],
     (32, 12, 1, 1024, 64), "f32", False, 1.0),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def inkling(options, arguments, dtype, backward, backend):
    command = [options.inkling, "bench", "sdpa", "-q", "-r", 3, "-t", options.threads, "--dtype", dtype, "--backend", backend,
               "--output", "json", *arguments, *(["--backward"] if backward else [])]
    rows = json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)
    return rows[-1]["us"]["median"] / 1e6, rows[-1]["gb_per_s"]


def seconds(call):
    call()
    samples = []
    for _ in range(3):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < 0.01 or calls == 0:
            call()
            calls += 1
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


def dense(shape, dtype, causal, backward, backend):
    batch, heads, tq, tk, dim = shape
    q, k, v = (torch.randn(batch, heads, t, dim, dtype=DTYPES[dtype], requires_grad=backward) for t in (tq, tk, tk))
    with sdpa_kernel(backend), torch.set_grad_enabled(backward):
        if not backward:
            return seconds(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        dout = torch.randn_like(out)
        return seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))


def packed(lengths, causal, how):
    draw = lambda: [torch.randn(t, 8, 64) for t in lengths]
    with torch.no_grad():
        if how == "nested":
            q, k, v = (torch.nested.nested_tensor(draw(), layout=torch.jagged).transpose(1, 2) for _ in range(3))
            return seconds(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
        longest = max(lengths)
        q, k, v = (torch.zeros(len(lengths), 8, longest, 64).normal_() for _ in range(3))
        return seconds(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal))


def torch_times(shape, dtype, causal, backward):
    times = {}
    if isinstance(shape, list):
        for how in ("nested", "padded"):
            try:
                times[how] = packed(shape, causal, how)
            except RuntimeError as error:
                times[how] = None
                print(f"{how}: {error}".splitlines()[0][:120])
        return times
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("math", SDPBackend.MATH)):
        times[name] = dense(shape, dtype, causal, backward, backend)
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inkling", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [(*row, False) for row in ROWS] + [(*row, True) for row in ROWS[:3]]
    results = {}
    for _ in range(options.rounds):
        for name, arguments, shape, dtype, causal, goal, backward in cases:
            backend = "decode" if name.startswith("decode") else "flash"
            ours, gb = inkling(options, arguments, dtype, backward, backend)
            theirs = torch_times(shape, dtype, causal, backward)
            best = min(t for t in theirs.values() if t)
            row = results.setdefault(name + (", backward" if backward else ""), {"goal": 1.2 if backward else goal, "rounds": []})
            row["rounds"].append({"inkling": ours, "gb_per_s": gb, "torch": theirs, "ratio": best / ours})
    print(f"PyTorch {torch.__version__}, {options.threads} threads, {options.rounds} rounds, ms\n")
    print("| case | Inkling | PyTorch | ratio (min–max) | goal | GB/s |\n|---|--:|---|--:|--:|--:|")
    for name, row in results.items():
        rounds = row["rounds"]
        median = lambda key: statistics.median(r[key] for r in rounds)
        theirs = ", ".join(f"{how} {statistics.median(r['torch'][how] for r in rounds) * 1e3:.2f}"
                           for how in rounds[0]["torch"] if all(r["torch"][how] for r in rounds))
        ratios = [r["ratio"] for r in rounds]
        print(f"| {name} | {median('inkling') * 1e3:.2f} | {theirs} | {median('ratio'):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
              f"| {row['goal']} | {median('gb_per_s'):.1f} |")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
