#!/usr/bin/env python3
"""Writes vocabulary_golden.json: byte-level BPE vocabularies as trained by the tokenizers package.

usage: make_vocabulary_golden.py DATA_DIR > vocabulary_golden.json   (DATA_DIR: the tests' reference data)
"""
import json
import pathlib
import sys

import tokenizers
from make_tokenizer_golden import fnv1a, generated

SMALL = ["low low low low low lower lower newest newest newest newest newest newest widest widest widest\n", "aaaa aaaaa abab\n"]


def merges(texts, vocab_size, min_frequency):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def case(rules):
    return {"merges": len(rules), "fnv1a": fnv1a("".join(rule + "\n" for rule in rules).encode()), "last": rules[-1]}


def main():
    data = pathlib.Path(sys.argv[1])
    golden = {"small": {"texts": SMALL, "vocab_size": 300, "min_frequency": 2, "merges": merges(SMALL, 300, 2)},
              "generated": [{"seed": seed, "runs": 20000, "vocab_size": 3000, "min_frequency": frequency,
                             **case(merges([generated(seed, 20000)], 3000, frequency))} for seed, frequency in ((7, 1), (8, 2), (9, 5))],
              "files": {name: {"vocab_size": size, "min_frequency": 2,
                               **case(merges([(data / name).read_bytes().decode()], size, 2))}
                        for name, size in (("text/tinyshakespeare.txt", 4096), ("text/kjv.txt", 8192),
                                           ("sentencepiece/botchan.txt", 2000))}}
    json.dump(golden, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
