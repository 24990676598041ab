#!/usr/bin/env python3
"""nanoGPT's shakespeare_char setting for a CPU, trained by PyTorch: the validation loss to hold ours against.

    python nanogpt.py tinyshakespeare.txt SEED...

The recipe is that of `inkling train --preset shakespeare-char-cpu`: 2000 iterations of 12 x 64 characters, then the mean loss of 500
batches of the last tenth of the text. Prints a line a seed, and the mean.
"""
import argparse
import math
import statistics

import torch
from torch import nn

from train import torch_model

VOCABULARY, WIDTH, LAYERS, BATCH, BLOCK, ITERATIONS, WARMUP, RATE = 65, 128, 4, 12, 64, 2000, 100, 1e-3


def learning_rate(i):
    if i < WARMUP:
        return RATE * (i + 1) / (WARMUP + 1)
    return RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * (i - WARMUP) / (ITERATIONS - WARMUP))))


def draw(data):
    starts = torch.randint(len(data) - BLOCK, (BATCH,))
    return tuple(torch.stack([data[i + shift:i + shift + BLOCK] for i in starts]) for shift in (0, 1))


def validation_loss(training, validation, seed):
    torch.manual_seed(seed)
    model = torch_model((VOCABULARY, WIDTH, LAYERS, False))
    for name, p in model.named_parameters():
        if name.endswith("proj.weight"):
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS))
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == wide], "weight_decay": 0.1 * wide} for wide in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)
    for i in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i)
        model(*draw(training)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        return statistics.mean(model(*draw(validation)).item() for _ in range(500))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("seeds", type=int, nargs="+")
    options = parser.parse_args()
    with open(options.text, encoding="utf-8") as file:
        text = file.read()
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    cut = len(data) * 9 // 10
    losses = []
    for seed in options.seeds:
        losses.append(validation_loss(data[:cut], data[cut:], seed))
        print(f"seed {seed}: {losses[-1]:.4f}", flush=True)
    print(f"mean: {statistics.mean(losses):.4f}")


if __name__ == "__main__":
    main()
