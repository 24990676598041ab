#!/usr/bin/env python3
"""A training step of GPT-2 124M on a GPU, 16 x 1024 tokens in bf16, beside PyTorch's.

    python train_gpu.py [--inkling build/release/bin/inkling] [--json FILE]

Wants PyTorch with CUDA. Its step is nanoGPT's: autocast to bf16, torch.compile, fused AdamW, clipping, and a vocabulary
padded to 50304; Inkling's is `bench train` with the published 50257.
"""
import argparse
import json
import subprocess
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, VOCABULARY, TOKENS, BATCH = 768, 12, 12, 50304, 1024, 16


class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.fcproj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = [t.view(BATCH, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for t in self.attn(self.ln_1(x)).split(WIDTH, 2)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True, dropout_p=self.dropout)
        x = x + F.dropout(self.proj(y.transpose(1, 2).reshape(BATCH, TOKENS, WIDTH)), self.dropout)
        return x + F.dropout(self.fcproj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh")), self.dropout)


class Gpt2(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, ids, targets):
        x = F.dropout(self.wte(ids) + self.wpe(torch.arange(TOKENS, device=ids.device)), self.dropout)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(self.ln_f(x), self.wte.weight).view(-1, VOCABULARY), targets.view(-1))


def pytorch(dropout):
    torch.set_float32_matmul_precision("high")
    model = Gpt2(dropout).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)
    ids, targets = (torch.randint(0, 50257, (BATCH, TOKENS), device="cuda") for _ in range(2))

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    for _ in range(5):
        step()
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / 4)
    return BATCH * TOKENS / sorted(seconds)[2]


def inkling(binary, dropout):
    command = [binary, "bench", "train", "--device", "cuda", "--batch-size", str(BATCH), "--block-size", str(TOKENS),
               "--compute", "bf16", "--dropout", str(dropout), "--output", "json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]["tok_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inkling", default="build/release/bin/inkling")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = [{"dropout": p, "inkling": inkling(options.inkling, p), "pytorch": pytorch(p)} for p in (0.0, 0.1)]
    print("| training 16x1024, bf16, tok/s | Inkling | PyTorch | ratio |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| dropout {row['dropout']} | {row['inkling']:,.0f} | {row['pytorch']:,.0f} "
              f"| {row['inkling'] / row['pytorch']:.2f} |")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
