#!/usr/bin/env python3
"""Attention on a GPU beside PyTorch's best, row by row in one run.

    python sdpa_gpu.py [--inkling build/release/bin/inkling] [--rows SUBSTRING] [--json FILE]

Wants PyTorch with CUDA; without --inkling PyTorch is measured alone. Both sides repeat a recorded chain of calls (a CUDA
graph) over more data than the GPU's cache holds. PyTorch's best is the fastest of cuDNN, flash, memory-efficient and what
it takes by itself. Inkling's forward + backward is the sum of the two.
"""
import argparse
import contextlib
import json
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
# name; B, H, D, Tq, Tk, dtype, causal, dropout; goal in µs forward, and forward + backward where that is measured
ROWS = [
    ("32x32x1024x32 full", 32, 32, 32, 1024, 1024, "f16", False, 0.0, 380, None),
    ("32x32x1024x32 causal", 32, 32, 32, 1024, 1024, "f16", True, 0.0, 230, None),
    ("gpt2 B=1 causal", 1, 12, 64, 1024, 1024, "bf16", True, 0.0, 8, 0),
    ("gpt2 B=16 causal", 16, 12, 64, 1024, 1024, "bf16", True, 0.0, 65, 290),
    ("gpt2 B=16 causal dropout", 16, 12, 64, 1024, 1024, "bf16", True, 0.1, 85, 360),
    ("gpt2 B=16 full", 16, 12, 64, 1024, 1024, "bf16", False, 0.0, 0, None),
    ("D=128 B=8 H=16 T=2048 causal", 8, 16, 128, 2048, 2048, "bf16", True, 0.0, 255, 0),
    ("H=8 D=64 32x512 full", 32, 8, 64, 512, 512, "bf16", False, 0.0, 0, None),
    ("decode B=1 kv 1024", 1, 12, 64, 1, 1024, "bf16", False, 0.0, 5, None),
    ("decode B=1 kv 8192", 1, 12, 64, 1, 8192, "bf16", False, 0.0, 9.5, None),
    ("decode B=16 kv 1024", 16, 12, 64, 1, 1024, "bf16", False, 0.0, 13.3, None),
    ("decode B=64 kv 1024", 64, 12, 64, 1, 1024, "bf16", False, 0.0, 49, None),
    ("decode B=16 kv 8192", 16, 12, 64, 1, 8192, "bf16", False, 0.0, 94, None),
]
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "default": None}


def inkling(binary, row):
    """Microseconds of forward, and of forward + backward or None."""
    _, batch, heads, dim, tq, tk, dtype, causal, p, _, backward = row
    command = [binary, "bench", "sdpa", "-q", "--device", "cuda", "-b", batch, "--heads", heads, "--head-dim", dim,
               "--dtype", dtype, "--mask", "causal-upper-left" if causal else "none", "--dropout", p,
               *(["--length", tq] if tq == tk else ["--q-length", tq, "--k-length", tk]),
               "--backend", "decode" if tq == 1 else "flash", "--output", "json", *(["--backward"] if backward is not None else [])]
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    times = [r["us"]["median"] for r in json.loads(done.stdout)]
    return times[0], sum(times) if backward is not None else None


def median_us(call, calls):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                call(i)
        times = []
        for i in range(12):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            graph.replay()
            stop.record(stream)
            torch.cuda.synchronize()
            if i >= 2:
                times.append(start.elapsed_time(stop) * 1000 / calls)
    return sorted(times)[len(times) // 2]


def of_torch(row):
    """{backend: microseconds}, forward and forward + backward; one that refuses is left out, with its reason printed."""
    name, batch, heads, dim, tq, tk, dtype, causal, p, _, backward = row
    size = batch * (2 * tq + 2 * tk) * heads * dim * 2
    sets = min(24, max(2, (256 << 20) // size + 1))
    calls = max(sets, 24)

    def tensor(t):  # (B, H, T, D) as a view of (B, T, H, D), the layout of a packed batch
        return torch.randn(batch, t, heads, dim, device="cuda", dtype=DTYPES[dtype]).transpose(1, 2)

    data = [[tensor(tq), tensor(tk), tensor(tk)] for _ in range(sets)]
    douts = [torch.randn_like(data[i][0]) for i in range(sets if backward is not None else 0)]

    def forward(i):
        return scaled_dot_product_attention(*data[i % sets], is_causal=causal, dropout_p=p)

    def both(i):
        torch.autograd.grad(forward(i), data[i % sets], douts[i % sets])

    times, times_both = {}, {}
    for label, backend in BACKENDS.items():
        with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
            try:
                with torch.no_grad():
                    times[label] = median_us(forward, calls)
                if backward is not None and label != "efficient":  # far behind
                    for tensors in data:
                        for x in tensors:
                            x.requires_grad_(True)
                    times_both[label] = median_us(both, calls)
            except RuntimeError as error:
                print(f"{name}: {label}: {str(error).splitlines()[0][:120]}", flush=True)
            finally:
                for tensors in data:
                    for x in tensors:
                        x.requires_grad_(False)
    return times, times_both


def line(name, ours, theirs, goal):
    label, best = min(theirs.items(), key=lambda item: item[1])
    return {"row": name, "inkling_us": ours, "torch_us": theirs, "best": label, "best_us": best, "goal_us": goal or None,
            "ratio": best / ours if ours else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inkling")
    parser.add_argument("--rows", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, µs\n")
    print("| row | Inkling | PyTorch's best | PyTorch ÷ Inkling | goal |\n|---|--:|--:|--:|--:|")
    results = []
    for row in ROWS:
        if options.rows not in row[0]:
            continue
        ours = inkling(options.inkling, row) if options.inkling else (None, None)
        times = of_torch(row)
        torch.cuda.empty_cache()
        for suffix, us, theirs, goal in zip(("", ", forward + backward"), ours, times, row[-2:]):
            if not theirs:
                continue
            results.append(line(row[0] + suffix, us, theirs, goal))
            r = results[-1]
            mine = (f"{us:.1f}", f"{r['ratio']:.2f}") if us else ("", "")
            print(f"| {r['row']} | {mine[0]} | {r['best_us']:.1f} {r['best']} | {mine[1]} | {goal or ''} |", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
