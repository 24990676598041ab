#!/usr/bin/env python3
"""PyTorch's GPT-2 124M on a GPU, as fast as PyTorch makes it: bf16, compiled, replayed as a CUDA graph.

    python3 tests/bench/gpu_torch.py make FOLDER     # a random GPT-2 124M as Hugging Face stores it, in bf16
    python3 tests/bench/gpu_torch.py run FOLDER      # a JSON row a line: {"test", "batch", "tok_per_s", "us"}

Wants torch alone. Decode is one step at a fixed depth (static cache, logits of every sequence); prefill gives the
logits of the last token.
"""
import json
import pathlib
import struct
import sys

import torch
import torch.nn.functional as F

C, LAYERS, HEADS, VOCAB, POSITIONS = 768, 12, 12, 50257, 1024
NAMES = {"BF16": torch.bfloat16}


def make(folder):
    generator, tensors = torch.Generator().manual_seed(1), {}

    def add(name, *shape, std=0.02):
        tensors[name] = (torch.randn(*shape, generator=generator) * std).to(torch.bfloat16)

    def norm(name):
        tensors[name + ".weight"] = torch.ones(C, dtype=torch.bfloat16)
        tensors[name + ".bias"] = torch.zeros(C, dtype=torch.bfloat16)

    add("wte.weight", VOCAB, C)
    add("wpe.weight", POSITIONS, C, std=0.01)
    for i in range(LAYERS):
        for name, rows, columns in (("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C),
                                    ("mlp.c_proj", 4 * C, C)):
            add(f"h.{i}.{name}.weight", rows, columns)
            add(f"h.{i}.{name}.bias", columns)
        norm(f"h.{i}.ln_1")
        norm(f"h.{i}.ln_2")
    norm("ln_f")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "gpt2", "vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": C, "n_layer": LAYERS,
         "n_head": HEADS, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}))
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.view(torch.int16).numpy().tobytes())


def load(folder):
    data = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(bytearray(data[8 + size + begin:8 + size + end]), dtype=NAMES[entry["dtype"]])
        tensor = flat.reshape(entry["shape"])
        # Linear layers as torch likes them: (out, in).
        tensors[name] = (tensor.t().contiguous() if ".c_" in name and name.endswith("weight") else tensor).cuda()
    return tensors


def forward(w, ids, positions, attend):
    """Logits of the last token of each row of ids (B, T)."""
    x = w["wte.weight"][ids] + w["wpe.weight"][positions]
    batch, length = ids.shape
    for i in range(LAYERS):
        p = f"h.{i}."
        h = F.layer_norm(x, (C,), w[p + "ln_1.weight"], w[p + "ln_1.bias"])
        qkv = F.linear(h, w[p + "attn.c_attn.weight"], w[p + "attn.c_attn.bias"])
        q, k, v = (t.view(batch, length, HEADS, C // HEADS).transpose(1, 2) for t in qkv.split(C, 2))
        y = attend(i, q, k, v).transpose(1, 2).reshape(batch, length, C)
        x = x + F.linear(y, w[p + "attn.c_proj.weight"], w[p + "attn.c_proj.bias"])
        h = F.layer_norm(x, (C,), w[p + "ln_2.weight"], w[p + "ln_2.bias"])
        h = F.gelu(F.linear(h, w[p + "mlp.c_fc.weight"], w[p + "mlp.c_fc.bias"]), approximate="tanh")
        x = x + F.linear(h, w[p + "mlp.c_proj.weight"], w[p + "mlp.c_proj.bias"])
    x = F.layer_norm(x[:, -1], (C,), w["ln_f.weight"], w["ln_f.bias"])
    return F.linear(x, w["wte.weight"])


def median_us(step):
    """Of one replay of a graph of `step`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        times = []
        for _ in range(9):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(20):
                graph.replay()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) * 1000 / 20)
    return sorted(times)[4]


def report(test, batch, tokens, us):
    print(json.dumps({"test": test, "batch": batch, "tok_per_s": round(tokens / us * 1e6, 1), "us": round(us, 1),
                      "torch": torch.__version__}), flush=True)


@torch.no_grad()
def run(folder, depth=512):
    w = load(folder)
    for length in (512, 1024):
        ids = torch.randint(VOCAB, (1, length), device="cuda")
        positions = torch.arange(length, device="cuda")[None]

        def prefill():
            return forward(w, ids, positions, lambda i, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        report(f"pp{length}", 1, length, median_us(torch.compile(prefill)))
    for batch in (1, 16, 64):
        ids = torch.randint(VOCAB, (batch, 1), device="cuda")
        position = torch.full((1,), depth, device="cuda")
        # A tensor per layer, written by index: one big cache would be copied whole at every write.
        caches = [[torch.randn(batch, HEADS, depth + 1, C // HEADS, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
                  for _ in range(LAYERS)]

        def step(ids, position, caches):
            def attend(i, q, k, v):
                for cache, new in zip(caches[i], (k, v)):
                    cache.index_copy_(2, position, new)
                return F.scaled_dot_product_attention(q, *caches[i])
            return forward(w, ids, position[None], attend)

        compiled = torch.compile(step)
        report(f"tg @ d{depth}", batch, batch, median_us(lambda: compiled(ids, position, caches)))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "run"):
        sys.exit(__doc__)
    {"make": make, "run": run}[sys.argv[1]](pathlib.Path(sys.argv[2]))
