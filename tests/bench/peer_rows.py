"""What is measured: engines, rows, goals, and the ceiling that the machine sets for each row."""

from dataclasses import dataclass

# GPT-2 124M: matrices read for each decoded token (12 layers and the tied head), and the sizes behind the flop counts.
LAYERS, WIDTH, VOCAB = 12, 768, 50257
LAYER_WEIGHTS = 12 * WIDTH * WIDTH
HEAD_WEIGHTS = VOCAB * WIDTH
READ_WEIGHTS = LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS  # 123.5 M
ALL_WEIGHTS = 124.44e6
BYTES_PER_WEIGHT = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.526}  # int4 with its group scales: 65 MB
BANDWIDTH_SIZE_MB = {"f32": 500, "bf16": 250, "int8": 125, "int4": 65}

# Engines by weight type. A name is family-variant; peer_worker.py and peer_engines.py read it.
OURS = {dtype: f"inkling-{dtype}" for dtype in BYTES_PER_WEIGHT}
PEERS = {
    "f32": ["llama-f32", "ct2-float32", "torch-f32"],
    "bf16": ["llama-bf16", "llama-f16", "torch-bf16"],
    "int8": ["llama-q8_0", "ct2-int8"],
    "int4": ["llama-q4_0", "llama-q4_0-pure"],
}
FAMILIES = ["inkling", "llama", "ct2", "torch"]
# The peer a memory or start goal is set against, by weight type.
LLAMA = {"f32": "llama-f32", "bf16": "llama-bf16", "int8": "llama-q8_0", "int4": "llama-q4_0"}


@dataclass
class Row:
    group: str  # what --rows selects
    op: str  # prefill, decode, start or memory
    dtype: str
    n: int = 0
    batch: int = 1
    threads: int = 0  # 0: as many as --threads says
    reps: int = 1
    goals: tuple[tuple[str, float], ...] = ()  # (engine or "best", least ratio; for start: greatest ratio)
    share_goal: float = 0.0  # least share of the ceiling

    @property
    def key(self) -> str:
        one = "-1t" if self.threads == 1 else ""
        if self.op in ("start", "memory"):
            return f"{self.op}-{self.dtype}"
        return f"{self.op}{self.n}-b{self.batch}{one}-{self.dtype}"

    @property
    def title(self) -> str:
        if self.op == "start":
            return f"start to first token, {self.dtype}, s"
        if self.op == "memory":
            return f"peak memory, {self.dtype}, MB"
        batch = f" B={self.batch}" if self.op == "decode" else ""
        return f"{self.op} {self.n}{batch}{', 1 thread' if self.threads == 1 else ''}, {self.dtype}, tok/s"

    @property
    def smaller_is_better(self) -> bool:
        return self.op in ("start", "memory")

    @property
    def engines(self) -> list[str]:
        peers = PEERS[self.dtype]
        if self.smaller_is_better:
            peers = [name for name in peers if name not in ("llama-f16", "llama-q4_0-pure")]
        return [OURS[self.dtype]] + peers


def make_rows(threads: int, decode_tokens: int) -> list[Row]:
    rows = []
    decode_goals = {
        "f32": ((("best", 1.1),), 0.85),
        "bf16": ((("llama-bf16", 1.3), ("llama-f16", 1.1)), 0.80),
        "int8": ((("llama-q8_0", 2.2),), 0.0),
        "int4": ((("llama-q4_0", 2.5),), 0.0),
    }
    for dtype, (goals, share) in decode_goals.items():
        rows.append(Row("decode", "decode", dtype, decode_tokens, goals=goals, share_goal=share))
    prefill_goals = {
        "f32": (("llama-f32", 1.6),),
        "bf16": (("llama-bf16", 2.2),),
        "int8": (("ct2-int8", 1.3),),
        "int4": (),
    }
    for dtype, goals in prefill_goals.items():
        rows.append(Row("prefill", "prefill", dtype, 512, reps=3, goals=goals))
    for dtype in BYTES_PER_WEIGHT:
        rows.append(Row("prefill128", "prefill", dtype, 128, reps=5))
    for batch, factor in ((8, 0.0), (32, 2.0)):
        for dtype, peer in (("f32", "ct2-float32"), ("int8", "ct2-int8")):
            goals = ((peer, factor),) if factor else ()
            rows.append(Row("batch", "decode", dtype, decode_tokens, batch=batch, goals=goals))
    if threads > 1:
        for dtype in BYTES_PER_WEIGHT:
            rows.append(Row("decode1t", "decode", dtype, decode_tokens, threads=1))
    for dtype, peer in LLAMA.items():
        rows.append(Row("start", "start", dtype, goals=((peer, 0.5),)))
    for dtype in LLAMA:
        rows.append(Row("memory", "memory", dtype))
    for row in rows:
        row.threads = row.threads or threads
    return rows


def memory_goal_mb(dtype: str) -> float:
    """Weights + 15% + the KV cache of the 640 positions that the row uses, in f32."""
    return (1.15 * ALL_WEIGHTS * BYTES_PER_WEIGHT[dtype] + LAYERS * 2 * WIDTH * 640 * 4) / 1e6


def flops(row: Row) -> float:
    """Of a whole prefill, or of one decode step of the batch at its mean length."""
    attention = 4 * LAYERS * WIDTH  # per (query, key) pair
    if row.op == "decode":
        return row.batch * (2 * READ_WEIGHTS + attention * row.n / 2)
    # The last layer's output projection and MLP, and the head, for the last token only.
    tail = 2 * 9 * WIDTH * WIDTH * (row.n - 1)
    return 2 * LAYERS * LAYER_WEIGHTS * row.n - tail + attention * row.n * row.n / 2 + 2 * HEAD_WEIGHTS


def ceiling(row: Row, machine: dict) -> float | None:
    """Tokens a second at the measured ceilings: the slower of reading the weights once and of the arithmetic."""
    if row.smaller_is_better:
        return None
    t = f"{row.threads}t"
    rates = {"f32": machine[f"fma_gflops_{t}"], "int8": machine[f"vnni_gops_{t}"], "int4": machine[f"vnni_gops_{t}"]}
    rates["bf16"] = max(rates["f32"], machine[f"bf16_gflops_{t}"])
    size = BANDWIDTH_SIZE_MB[row.dtype]
    read = READ_WEIGHTS * BYTES_PER_WEIGHT[row.dtype] / (machine[f"read{size}_gbs_{t}"] * 1e9)
    compute = flops(row) / (rates[row.dtype] * 1e9)
    return (row.n if row.op == "prefill" else row.batch) / max(read, compute)
