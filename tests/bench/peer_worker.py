"""One engine in one process: loads a model, then answers JSON commands on stdin with JSON lines on stdout.

    python peer_worker.py ENGINE MODELS THREADS            stays alive; ENGINE as in peer_rows.PEERS
    python peer_worker.py ENGINE MODELS THREADS --once     encodes a prompt, prints one greedy token, leaves

Commands: {"op": "prefill", "n": 512, "reps": 3}, {"op": "decode", "n": 128, "batch": 8, "reps": 1},
{"op": "threads", "n": 1}, {"op": "greedy", "n": 8}. Timings come back in seconds, one a repetition, model loading and
warm-up excluded.
"""

import ctypes
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

VOCAB = 50257
WARM_TOKENS = 8
GREEDY_PROMPT = [464, 3290]  # "The dog"


def prompt_ids(n: int) -> list[int]:
    rng = random.Random(n)
    return [rng.randrange(VOCAB - 1) for _ in range(n)]


class Llama:
    """llama.cpp through the C API: llama_decode and nothing else is timed, as in llama-bench (no sampling).

    Flash attention on, n_batch = n_ubatch = 512, B sequences of one token in one llama_decode per decode step.
    """

    def __init__(self, variant: str, models: Path, threads: int):
        import llama_cpp

        self.c = llama_cpp
        self.threads = threads
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.path = models / f"{variant}.gguf"

    def load(self) -> None:
        params = self.c.llama_model_default_params()
        self.model = self.c.llama_model_load_from_file(str(self.path).encode(), params)
        assert self.model, f"llama.cpp cannot load {self.path.name}"

    def info(self) -> dict:
        return {"version": f"llama-cpp-python {self.c.__version__}", "system": self.c.llama_print_system_info().decode()}

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def context(self, batch: int, length: int):
        params = self.c.llama_context_default_params()
        params.n_ctx = batch * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = self.c.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context = self.c.llama_init_from_model(self.model, params)
        assert context, "llama.cpp cannot make a context"
        return context

    def fill(self, batch, tokens: list[int], positions: list[int], sequences: list[int], last_only: bool) -> None:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = positions[i]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequences[i]
            batch.logits[i] = not last_only or i + 1 == len(tokens)

    def step(self, context, batch) -> None:
        code = self.c.llama_decode(context, batch)
        assert code == 0, f"llama_decode returned {code}"
        self.c.llama_synchronize(context)

    def prefill(self, n: int, reps: int) -> list[float]:
        context, batch = self.context(1, n), self.c.llama_batch_init(n, 0, 1)
        self.fill(batch, prompt_ids(n), list(range(n)), [0] * n, last_only=True)
        seconds = []
        for _ in range(reps + 1):
            self.c.llama_memory_clear(self.c.llama_get_memory(context), True)
            start = time.perf_counter()
            self.step(context, batch)
            seconds.append(time.perf_counter() - start)
        self.c.llama_batch_free(batch)
        self.c.llama_free(context)
        return seconds[1:]

    def decode(self, n: int, batch_size: int, reps: int) -> list[float]:
        context, batch = self.context(batch_size, n), self.c.llama_batch_init(batch_size, 0, 1)
        tokens, seconds = prompt_ids(batch_size), []
        for steps in [WARM_TOKENS] + [n] * reps:
            self.c.llama_memory_clear(self.c.llama_get_memory(context), True)
            start = time.perf_counter()
            for position in range(steps):
                self.fill(batch, tokens, [position] * batch_size, list(range(batch_size)), last_only=False)
                self.step(context, batch)
            seconds.append(time.perf_counter() - start)
        self.c.llama_batch_free(batch)
        self.c.llama_free(context)
        return seconds[1:]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        import numpy as np

        context, batch = self.context(1, len(prompt) + n), self.c.llama_batch_init(len(prompt), 0, 1)
        out, tokens, position = [], prompt, 0
        for _ in range(n):
            self.fill(batch, tokens, list(range(position, position + len(tokens))), [0] * len(tokens), last_only=True)
            self.step(context, batch)
            position += len(tokens)
            logits = np.ctypeslib.as_array(self.c.llama_get_logits_ith(context, -1), shape=(VOCAB,))
            tokens = [int(logits.argmax())]
            out += tokens
        self.c.llama_batch_free(batch)
        self.c.llama_free(context)
        return out


class CTranslate2:
    """CTranslate2's Generator, greedy, EOS held back by min_length.

    Prefill is generate_batch(max_length=1): the prompt in one pass without logits, then one step for its last token.
    forward_batch would project all 512 rows onto the vocabulary, half as much arithmetic again.
    """

    def __init__(self, variant: str, models: Path, threads: int):
        import ctranslate2

        self.c, self.variant, self.threads = ctranslate2, variant, threads
        self.path = models / f"ct2-{variant}"
        vocabulary = json.loads((models / "hf-f32" / "vocab.json").read_text(encoding="utf-8"))
        self.ids = vocabulary
        self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)

    def load(self) -> None:
        self.generator = self.c.Generator(
            str(self.path), device="cpu", compute_type=self.variant, intra_threads=self.threads, inter_threads=1)

    def info(self) -> dict:
        return {"version": f"ctranslate2 {self.c.__version__}",
                "system": f"compute type {self.generator.compute_type}, CT2_USE_MKL={os.environ.get('CT2_USE_MKL', '')}"}

    def set_threads(self, threads: int) -> None:
        if threads != self.threads:
            self.threads = threads
            self.generator = None
            self.load()

    def generate(self, prompts: list[list[str]], n: int) -> list:
        return self.generator.generate_batch(
            prompts, max_length=n, min_length=n, beam_size=1, sampling_topk=1, include_prompt_in_result=False)

    def prefill(self, n: int, reps: int) -> list[float]:
        prompt = [[self.tokens[i] for i in prompt_ids(n)]]
        seconds = []
        for _ in range(reps + 1):
            start = time.perf_counter()
            self.generate(prompt, 1)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def decode(self, n: int, batch_size: int, reps: int) -> list[float]:
        prompts, seconds = [[self.tokens[i]] for i in prompt_ids(batch_size)], []
        for steps in [WARM_TOKENS] + [n] * reps:
            start = time.perf_counter()
            results = self.generate(prompts, steps)
            seconds.append(time.perf_counter() - start)
            assert all(len(result.sequences_ids[0]) == steps for result in results)
        return seconds[1:]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        return self.generate([[self.tokens[i] for i in prompt]], n)[0].sequences_ids[0]


class Torch:
    """PyTorch with transformers' GPT2LMHeadModel: SDPA, dynamic KV cache, inference mode, last-token logits, greedy."""

    def __init__(self, variant: str, models: Path, threads: int):
        import torch
        import transformers

        self.t, self.tf, self.variant = torch, transformers, variant
        self.path = models / f"hf-{variant}"
        torch.set_num_threads(threads)

    def load(self) -> None:
        dtype = {"f32": self.t.float32, "bf16": self.t.bfloat16}[self.variant]
        self.tf.utils.logging.set_verbosity_error()
        self.tf.utils.logging.disable_progress_bar()
        self.model = self.tf.GPT2LMHeadModel.from_pretrained(self.path, dtype=dtype, attn_implementation="sdpa").eval()

    def info(self) -> dict:
        return {"version": f"torch {self.t.__version__}, transformers {self.tf.__version__}",
                "system": f"{self.t.backends.cpu.get_cpu_capability()}, mkl {self.t.backends.mkl.is_available()}"}

    def set_threads(self, threads: int) -> None:
        self.t.set_num_threads(threads)

    def prefill(self, n: int, reps: int) -> list[float]:
        ids, seconds = self.t.tensor([prompt_ids(n)]), []
        with self.t.inference_mode():
            for _ in range(reps + 1):
                start = time.perf_counter()
                self.model(ids, use_cache=True, logits_to_keep=1)
                seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def run(self, ids, n: int) -> list:
        cache, out = None, []
        with self.t.inference_mode():
            for _ in range(n):
                result = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = result.past_key_values
                ids = result.logits[:, -1].argmax(-1, keepdim=True)
                out.append(ids)
        return out

    def decode(self, n: int, batch_size: int, reps: int) -> list[float]:
        ids, seconds = self.t.tensor([[i] for i in prompt_ids(batch_size)]), []
        for steps in [WARM_TOKENS] + [n] * reps:
            start = time.perf_counter()
            self.run(ids, steps)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        return [int(ids) for ids in self.run(self.t.tensor([prompt]), n)]


FAMILIES = {"llama": Llama, "ct2": CTranslate2, "torch": Torch}


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def serve(engine, command: dict) -> dict:
    op, n, reps = command["op"], command["n"], command.get("reps", 1)
    if op == "prefill":
        return {"seconds": engine.prefill(n, reps)}
    if op == "decode":
        return {"seconds": engine.decode(n, command.get("batch", 1), reps), "peak_rss_mb": peak_rss_mb()}
    if op == "threads":
        engine.set_threads(n)
        return {"threads": n}
    return {"greedy": engine.greedy(GREEDY_PROMPT, n)}


def once(engine, models: Path, imported: float) -> dict:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models / "hf-f32" / "tokenizer.json"))
    engine.load()
    token = engine.greedy(tokenizer.encode("The dog").ids, 1)
    print(tokenizer.decode(token), file=sys.stderr)
    return {"imported_at": imported, "token_at": time.monotonic(), "peak_rss_mb": peak_rss_mb()}


def end_with_parent() -> None:
    """A stopped worker whose parent was killed would stay for ever."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    end_with_parent()
    # The protocol keeps the real stdout; whatever a library prints goes to stderr.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    family, variant = sys.argv[1].split("-", 1)
    models, threads = Path(sys.argv[2]), int(sys.argv[3])
    engine = FAMILIES[family](variant, models, threads)
    baseline, imported = peak_rss_mb(), time.monotonic()
    if "--once" in sys.argv:
        pipe.write(json.dumps(once(engine, models, imported)) + "\n")
        return
    start = time.perf_counter()
    engine.load()
    ready = {"load_seconds": time.perf_counter() - start, "baseline_rss_mb": baseline} | engine.info()
    pipe.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        pipe.write(json.dumps(serve(engine, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
