#!/usr/bin/env python3
"""Writes trainer.json: losses, gradients and AdamW's first 20 iterations of small random GPT-2s by PyTorch in float64.

    pip install torch transformers numpy
    python tests/golden/make_trainer_golden.py > tests/golden/trainer.json

Weights are those of make_model_golden.py. The forward pass is written out below, because dropout must use the masks of
engine/training_ops.h, which a Philox in numpy draws again; without dropout it is held against transformers' own.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

import make_model_golden as models

CASES = [
    dict(name="biases, tied", V=23, T=16, C=12, L=2, H=2, dropout=0.0),
    dict(name="no biases, untied, exact gelu, dropout", V=19, T=16, C=8, L=2, H=2, activation="gelu", bias=False, tied=False,
         dropout=0.2),
]
LENGTHS = [[7, 1, 5], [16], [3, 9]]  # of the sequences of each batch
OPTIONS = dict(learning_rate=3e-2, min_lr=3e-3, warmup_iters=3, lr_decay_iters=18, beta1=0.9, beta2=0.95, weight_decay=0.1,
               grad_clip=0.7, seed=0x123456789AB)
ITERATIONS, BATCHES_EACH = 20, 2


def philox(counter, seed):
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    low, k0, k1 = np.uint64(0xFFFFFFFF), seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def mask(rows, columns, third, p, offset):
    """1/(1-p) where kept, else 0."""
    if p == 0:
        return torch.ones(rows, columns, dtype=torch.float64)
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    words = philox((j // 4, i, np.full_like(i, third), np.full_like(i, offset)), OPTIONS["seed"])
    drawn = np.select([j % 4 == n for n in range(4)], words)
    p = float(np.float32(p))
    return torch.from_numpy((drawn >= int(p * 2**32)) / (1 - p))


def sequence_loss(p, case, ids, targets, number, passed):
    """Sum of losses of sequence `number` of a batch; `passed` numbers the batch in the run."""
    width, heads, rate, length = case["C"], case["H"], case["dropout"], len(ids)
    offset = lambda index: passed * (1 + 2 * case["L"]) + index
    drop = lambda x, index: x * mask(length, width, 2**31 + number, rate, offset(index))
    gelu = lambda x: F.gelu(x, approximate="none" if case.get("activation") == "gelu" else "tanh")

    def norm(x, name):
        return F.layer_norm(x, (width,), p[name + ".weight"], p.get(name + ".bias"), 1e-5)

    def linear(x, name):
        return x @ p[name + ".weight"] + (p[name + ".bias"] if name + ".bias" in p else 0)

    x = drop(p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][:length], 0)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(case["L"]):
        h = f"transformer.h.{layer}."
        qkv = linear(norm(x, h + "ln_1"), h + "attn.c_attn")
        q, k, v = (t.view(length, heads, -1).transpose(0, 1) for t in qkv.split(width, 1))
        weights = (q @ k.transpose(1, 2) / math.sqrt(width // heads)).masked_fill(hidden, -math.inf).softmax(-1)
        weights = weights * torch.stack([mask(length, length, number * heads + head, rate, offset(1 + 2 * layer))
                                         for head in range(heads)])
        attended = (weights @ v).transpose(0, 1).reshape(length, width)
        x = x + drop(linear(attended, h + "attn.c_proj"), 1 + 2 * layer)
        x = x + drop(linear(gelu(linear(norm(x, h + "ln_2"), h + "mlp.c_fc")), h + "mlp.c_proj"), 2 + 2 * layer)
    head = p.get("lm_head.weight", p["transformer.wte.weight"])
    return F.cross_entropy(norm(x, "transformer.ln_f") @ head.T, targets, reduction="sum", ignore_index=-1)


def batch_loss(p, case, batch, passed):
    return sum(sequence_loss(p, case, torch.tensor(ids), torch.tensor(targets), number, passed)
               for number, (ids, targets) in enumerate(batch))


def learning_rate(i):
    o = OPTIONS
    if i < o["warmup_iters"]:
        return o["learning_rate"] * (i + 1) / (o["warmup_iters"] + 1)
    if i > o["lr_decay_iters"]:
        return o["min_lr"]
    done = (i - o["warmup_iters"]) / (o["lr_decay_iters"] - o["warmup_iters"])
    return o["min_lr"] + 0.5 * (1 + math.cos(math.pi * done)) * (o["learning_rate"] - o["min_lr"])


def targets_of(batch):
    return sum(t != -1 for _, targets in batch for t in targets)


def run(case):
    models.CASES = CASES
    model, random = models.build(case)
    model = model.double()
    p = {name: t.detach().clone().requires_grad_() for name, t in model.named_parameters()
         if case.get("bias", True) or not name.endswith(".bias")}
    draw = lambda length: [random.id(case["V"]) for _ in range(length)]
    batches = [[(draw(length), [t if i % 4 != 2 else -1 for i, t in enumerate(draw(length))]) for length in lengths]
               for lengths in LENGTHS]

    if case["dropout"] == 0:
        for ids, targets in batches[0]:
            theirs = F.cross_entropy(model(torch.tensor([ids])).logits[0], torch.tensor(targets), reduction="sum",
                                     ignore_index=-1)
            assert abs(theirs - sequence_loss(p, case, torch.tensor(ids), torch.tensor(targets), 0, 0)) < 1e-9
    loss = batch_loss(p, case, batches[0], 5)
    loss.backward()
    gradients = {name: [float(f"{g:.8g}") for g in t.grad.flatten().tolist()] for name, t in p.items()}

    groups = [{"params": [t for t in p.values() if t.dim() >= 2], "weight_decay": OPTIONS["weight_decay"]},
              {"params": [t for t in p.values() if t.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1, betas=(OPTIONS["beta1"], OPTIONS["beta2"]), eps=1e-8)
    curve = []
    for i in range(ITERATIONS):
        optimizer.zero_grad()
        chosen = [batches[(i + m) % len(batches)] for m in range(BATCHES_EACH)]
        count = sum(map(targets_of, chosen))
        total = 0.0
        for m, batch in enumerate(chosen):
            part = batch_loss(p, case, batch, i * BATCHES_EACH + m) / count
            part.backward()
            total += float(part)
        length = torch.nn.utils.clip_grad_norm_(list(p.values()), OPTIONS["grad_clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i)
        optimizer.step()
        curve.append([float(f"{total:.9g}"), float(f"{float(length):.9g}")])
    return {**case, "batches": batches, "loss": float(f"{float(loss):.9g}"), "gradients": gradients, "curve": curve}


if __name__ == "__main__":
    golden = {"options": OPTIONS, "batches_each": BATCHES_EACH, "cases": [run(case) for case in CASES]}
    print(json.dumps(golden))
