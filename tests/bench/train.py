#!/usr/bin/env python3
"""Iterations of training beside PyTorch's, interleaved in one run: forward, backward, clipping, AdamW.

    python train.py --inkling build/release/bin/inkling [--rounds 5] [--llmc LLM.C-FOLDER] [--json FILE]

Wants PyTorch. Both sides run on --threads threads in f32; a round measures Inkling, then PyTorch eager and compiled, row by
row; the table shows the median of the rounds and of their ratios. PyTorch's model is nanoGPT's: fused attention, tied head,
fused AdamW. Peak memory is that of a process that does nothing else (for PyTorch: its growth since the imports), in MB of 10^6 bytes for both.
With --llmc (a checkout whose `train_gpt2` is built and whose gpt2_124M.bin and token files are there), llm.c's own program runs
B=4 T=64.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

# name, arguments of `inkling bench train`, (vocabulary, width, layers = heads, bias), (B, T), goal
ROWS = [
    ("GPT-2 124M, 4 x 64", ["--shape", "gpt2", "-b", 4, "--block-size", 64], (50257, 768, 12, True), (4, 64), 1.3),
    ("GPT-2 124M, 1 x 512", ["--shape", "gpt2", "-b", 1, "--block-size", 512], (50257, 768, 12, True), (1, 512), 1.3),
    ("shakespeare_char on the CPU, 12 x 64", ["--shape", "shakespeare-char-cpu", "-b", 12, "--block-size", 64], (65, 128, 4, False),
     (12, 64), 2.0),
]


def torch_model(shape):
    """nanoGPT's model, (ids, targets) → loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    vocab, width, layers, bias = shape

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
            self.attn, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
            self.fc, self.fcproj = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (y.view(b, t, layers, -1).transpose(1, 2) for y in self.attn(self.ln_1(x)).split(width, 2))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, width))
            return x + self.fcproj(functional.gelu(self.fc(self.ln_2(x)), approximate="tanh" if bias else "none"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(1024, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.ln_f, self.head = nn.LayerNorm(width, bias=bias), nn.Linear(width, vocab, bias=False)
            self.head.weight = self.wte.weight
            for p in self.parameters():
                if p.dim() > 1:
                    nn.init.normal_(p, std=0.02)

        def forward(self, ids, targets):
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            return functional.cross_entropy(self.head(self.ln_f(x)).view(-1, vocab), targets.view(-1))

    return Model()


def torch_step(shape, batch, compiled):
    """A function that does one iteration."""
    import torch
    from torch import nn

    vocab = shape[0]
    torch.manual_seed(1)
    model = torch_model(shape)
    run = torch.compile(model) if compiled else model
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == wide], "weight_decay": 0.1 * wide} for wide in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    ids, targets = torch.randint(vocab, batch), torch.randint(vocab, batch)

    def step():
        loss = run(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def seconds(call):
    samples = []
    for _ in range(3):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < 0.01 or calls == 0:
            call()
            calls += 1
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


def inkling(options, arguments):
    command = [options.inkling, "bench", "train", "-q", "-r", 3, "-t", options.threads, "--output", "json", *arguments]
    return json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)[0]


def peak_mb():
    with open("/proc/self/status", encoding="utf-8") as file:  # getrusage's figure would be the parent's after a fork
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) * 1024 / 1e6


def torch_memory(options, number):
    command = [sys.executable, __file__, "--memory-of", str(number), "--threads", str(options.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(options):
    import torch
    torch.set_num_threads(options.threads)
    _, _, shape, batch, _ = ROWS[options.memory_of]
    before = peak_mb()
    step = torch_step(shape, batch, False)
    for _ in range(3):
        step()
    print(peak_mb() - before)


def llmc(options):
    """Milliseconds of its steps, B=4 T=64 as its program fixes them."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    with subprocess.Popen(["stdbuf", "-oL", "./train_gpt2"], cwd=options.llmc, env=environment, stdout=subprocess.PIPE, text=True) as process:
        found = []
        for line in process.stdout:
            match = re.search(r"train loss .*took ([\d.]+) ms", line)
            found += [float(match[1])] if match else []
            if len(found) == 4:
                process.kill()
    return statistics.median(found[1:]) / 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inkling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llmc")
    parser.add_argument("--json")
    parser.add_argument("--memory-of", type=int)
    options = parser.parse_args()
    if options.memory_of is not None:
        return print_memory(options)
    import torch
    torch.set_num_threads(options.threads)
    results = {}
    for number, (name, arguments, shape, batch, goal) in enumerate(ROWS):
        steps = {how: torch_step(shape, batch, how == "compiled") for how in ("eager", "compiled")}
        for step in steps.values():
            step(), step()
        row = results[name] = {"goal": goal, "tokens": batch[0] * batch[1], "torch_mb": torch_memory(options, number), "rounds": []}
        for _ in range(options.rounds):
            ours = inkling(options, arguments)
            theirs = {how: seconds(step) for how, step in steps.items()}
            if options.llmc and number == 0:
                theirs["llm.c"] = llmc(options)
            row["mb"] = ours["rss_mb"]
            row["rounds"].append({"inkling": ours["ms"]["median"] / 1e3, **theirs})
        del steps
    print(f"PyTorch {torch.__version__}, {options.threads} threads, {options.rounds} rounds\n")
    print("| iteration | Inkling, ms | tok/s | beside | ms | ratio (min–max) | goal | peak MB, Inkling / PyTorch |\n|---|--:|--:|---|--:|--:|--:|--:|")
    for name, row in results.items():
        for how in row["rounds"][0]:
            if how == "inkling":
                continue
            ours, theirs = ([r[key] for r in row["rounds"]] for key in ("inkling", how))
            ratios = [b / a for a, b in zip(ours, theirs)]
            print(f"| {name} | {statistics.median(ours) * 1e3:.1f} | {row['tokens'] / statistics.median(ours):.0f} | {how} | "
                  f"{statistics.median(theirs) * 1e3:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | "
                  f"{1.5 if how == 'llm.c' else row['goal']} | {row['mb']:.0f} / {row['torch_mb']:.0f} |")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": options.threads, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
