#!/usr/bin/env python3
"""Writes tokenizer_golden.json: ids, hashes of ids and decoded texts by the tokenizers, tiktoken and sentencepiece packages.

usage: make_tokenizer_golden.py DATA_DIR > tokenizer_golden.json   (DATA_DIR: the tests' reference data)

tests/tokenizer/generated_text.h holds the same generator in C++. Characters are from blocks that Unicode has not
changed since version 10, so that every library's tables agree.
"""
import json
import pathlib
import sys

import sentencepiece
import tiktoken
import tokenizers

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BLOCKS = [
    (0x61, 0x7A), (0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A), (0x30, 0x39), (0x20, 0x2F), (0x3A, 0x40), (0x5B, 0x60),
    (0x7B, 0x7E), (0x20, 0x20), (0x20, 0x20), (0x09, 0x0D), (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xFF), (0x100, 0x17F),
    (0x300, 0x30A), (0x391, 0x3A1), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x63A), (0x660, 0x669), (0x905, 0x939),
    (0xE01, 0xE30), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200A), (0x200B, 0x2027), (0x2028, 0x202F),
    (0x205F, 0x205F), (0x2150, 0x2189), (0x2200, 0x22FF), (0x3000, 0x3003), (0x3041, 0x3096), (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFF21, 0xFF3A), (0xFEFF, 0xFEFF), (0x10400, 0x1044F),
    (0x1D400, 0x1D454), (0x1F600, 0x1F64F), (0x20000, 0x20100), (0xF0000, 0xF0010),
]
STRINGS = ["'s", "'re", "'ll", "'d", "'ve", "'T", " '", "<|endoftext|>", " the", "  ", "\n\n", "e\u0301", "\u2581"]
MASK = (1 << 64) - 1


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def generated(seed, runs):
    random = SplitMix64(seed)
    out = []
    for _ in range(runs):
        which = random.below(len(BLOCKS) + len(STRINGS))
        if which >= len(BLOCKS):
            out.append(STRINGS[which - len(BLOCKS)])
            continue
        first, last = BLOCKS[which]
        for _ in range(1 + random.below(6)):
            out.append(chr(first + random.below(last - first + 1)))
    return "".join(out)


def fnv1a(ids):
    """FNV-1a over the ids as little-endian 32-bit words."""
    value = 0xCBF29CE484222325
    for i in ids:
        for byte in int(i).to_bytes(4, "little"):
            value = ((value ^ byte) * 0x100000001B3) & MASK
    return f"{value:016x}"


def summary(ids):
    return {"tokens": len(ids), "fnv1a": fnv1a(ids)}


SAMPLES = [
    "Hello world", " Hello  world\n", "", " ", "\n \n", "don't DON'T 'tis it's'", "x<|endoftext|>y", "<|endoftext|><|endoftext|>",
    "<|endoftext", "naïve café", "中文字", "\u180e \u0085\u2028x", "12345 1 2", "🙂🙂 👩‍👩‍👧", "\u0000\u0001", "a" * 300, " " * 300 + "x",
    "The quick brown fox jumps over the lazy dog.",
]
PIECE_SAMPLES = [
    "Hello world", "  hello   world ", "", " ", "▁▁ x", "ＡＢＣ①ﬁ", "中文字\u3000と", "\n\ta", "<s>hi</s><unk>", "e\u0301",
    "\ufeffx", "🙂🙂a", "I saw a girl with a telescope.", "吾輩は猫である。名前はまだ無い。",
]


def gpt2(data):
    hugging = tokenizers.Tokenizer.from_file(str(data / "gpt2-tokenizer/tokenizer.json"))
    prefixed = tokenizers.Tokenizer.from_file(str(data / "gpt2-tokenizer/tokenizer.json"))
    prefixed.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    vocab = json.loads((data / "gpt2-tokenizer/vocab.json").read_text())
    alphabet = byte_alphabet()
    ranks = {bytes(alphabet[c] for c in piece): i for piece, i in vocab.items() if piece != "<|endoftext|>"}
    tik = tiktoken.Encoding("gpt2-local", pat_str=PATTERN, mergeable_ranks=ranks,
                            special_tokens={"<|endoftext|>": 50256})

    def encode(text):
        ids = hugging.encode(text).ids
        assert ids == tik.encode(text, allowed_special="all"), repr(text[:80])
        return ids

    shakespeare = (data / "text/tinyshakespeare.txt").read_text()
    cut = int(len(shakespeare) * 0.9)
    assert (len(encode(shakespeare[:cut])), len(encode(shakespeare[cut:]))) == (301966, 36059)
    files = ["text/tinyshakespeare.txt", "text/moby_dick.txt", "sentencepiece/botchan.txt"]
    return {
        "files": {name: summary(encode((data / name).read_bytes().decode())) for name in files},
        "generated": [{"seed": s, "runs": 150000, **summary(encode(generated(s, 150000)))} for s in (1, 2, 3)],
        "samples": [{"text": t, "ids": encode(t), "prefixed": prefixed.encode(t).ids,
                     "literal": tik.encode(t, disallowed_special=())} for t in SAMPLES],
    }


def byte_alphabet():
    """The inverse of openai/gpt-2's bytes_to_unicode."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}


def pieces(data, path):
    model = sentencepiece.SentencePieceProcessor(str(path))
    botchan = (data / "sentencepiece/botchan.txt").read_bytes().decode()
    samples = []
    for text in PIECE_SAMPLES:
        ids = model.encode(text)
        samples.append({"text": text, "ids": ids, "decoded": model.decode(ids)})
    return {
        "size": model.vocab_size(), "bos": model.bos_id(), "eos": model.eos_id(),
        "botchan": summary(model.encode(botchan)),
        # Many short texts: over a long one, versions of the library round sums of scores to different ties.
        "generated": {"seeds": 300, "runs": 100,
                      **summary([i for seed in range(300) for i in model.encode(generated(seed, 100))])},
        "unknown_run": {"repeat": 20000, **summary(model.encode("a " + "字" * 20000 + " b" + "字" * 20000))},
        "samples": samples,
    }


def main():
    data = pathlib.Path(sys.argv[1])
    models = sorted((data / "sentencepiece").glob("*.model"))
    golden = {"gpt2": gpt2(data), "sentencepiece": {m.name: pieces(data, m) for m in models}}
    json.dump(golden, sys.stdout, indent=1, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
