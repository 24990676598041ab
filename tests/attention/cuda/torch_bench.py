"""PyTorch's attention on the rows of bench.cu, every backend, by graph replays over rotating buffers. JSON lines.

    python3 tests/attention/cuda/torch_bench.py [substring]
"""

import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BF16, F16 = torch.bfloat16, torch.float16
# name, B, H, D, Tq, Tk, dtype, causal, p, backward
ROWS = [
    ("32x32x1024x32 full", 32, 32, 32, 1024, 1024, F16, False, 0.0, False),
    ("32x32x1024x32 causal", 32, 32, 32, 1024, 1024, F16, True, 0.0, False),
    ("gpt2 B=1 causal", 1, 12, 64, 1024, 1024, BF16, True, 0.0, True),
    ("gpt2 B=16 causal", 16, 12, 64, 1024, 1024, BF16, True, 0.0, True),
    ("gpt2 B=16 causal dropout", 16, 12, 64, 1024, 1024, BF16, True, 0.1, True),
    ("gpt2 B=16 full", 16, 12, 64, 1024, 1024, BF16, False, 0.0, False),
    ("D=128 B8 H16 T2048 causal", 8, 16, 128, 2048, 2048, BF16, True, 0.0, True),
    ("E=512 H=8 32x512 full", 32, 8, 64, 512, 512, BF16, False, 0.0, False),
    ("decode B=1 kv 1024", 1, 12, 64, 1, 1024, BF16, False, 0.0, False),
    ("decode B=1 kv 8192", 1, 12, 64, 1, 8192, BF16, False, 0.0, False),
    ("decode B=16 kv 1024", 16, 12, 64, 1, 1024, BF16, False, 0.0, False),
    ("decode B=64 kv 1024", 64, 12, 64, 1, 1024, BF16, False, 0.0, False),
    ("decode B=16 kv 8192", 16, 12, 64, 1, 8192, BF16, False, 0.0, False),
]
BACKENDS = [("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION), ("default", None)]


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


def measure(row):
    name, batch, heads, dim, tq, tk, dtype, causal, p, backward = row
    size = batch * (2 * tq + 2 * tk) * heads * dim * 2
    sets = min(24, max(2, (256 << 20) // size + 1))
    calls = max(sets, 24)

    def tensor(t):  # (B, H, T, D) as views of (B, T, H, D), the layout of a packed batch
        return torch.randn(batch, t, heads, dim, device="cuda", dtype=dtype).transpose(1, 2)

    data = [(tensor(tq), tensor(tk), tensor(tk)) for _ in range(sets)]
    for label, backend in BACKENDS:
        def forward(i):
            q, k, v = data[i % sets]
            return scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=p)

        def guarded(call):
            if backend is None:
                return median_us(call, calls)
            with sdpa_kernel(backend):
                return median_us(call, calls)

        try:
            with torch.no_grad():
                print(json.dumps({"row": name, "kernel": "torch " + label, "us": round(guarded(forward), 2)}), flush=True)
            if backward and label != "efficient":
                for triple in data:
                    for x in triple:
                        x.requires_grad_(True)
                grads = [torch.randn_like(tensor(tq)) for _ in range(sets)]

                def both(i):
                    q, k, v = data[i % sets]
                    out = scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=p)
                    torch.autograd.grad(out, (q, k, v), grads[i % sets])

                print(json.dumps({"row": name, "kernel": f"torch {label} forward+backward", "us": round(guarded(both), 2)}),
                      flush=True)
        except Exception as error:  # a backend that refuses is a line of the table, too
            print(json.dumps({"row": name, "kernel": "torch " + label, "error": str(error).splitlines()[0][:120]}), flush=True)
        finally:
            for triple in data:
                for x in triple:
                    x.requires_grad_(False)


def main():
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(0)}), flush=True)
    for row in ROWS:
        if len(sys.argv) < 2 or sys.argv[1] in row[0]:
            measure(row)
            torch.cuda.empty_cache()


main()
