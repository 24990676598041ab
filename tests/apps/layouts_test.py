"""Folders of weights as other programs leave them: the same weights in every layout give the same bytes, and a folder that is wrong is refused by name.

    python3 tests/apps/layouts_test.py INKLING SOURCE_DIR [TestCase.test_name ...]
"""

import array
import json
import random
import struct
import sys
import unittest

from program import run, Folder

V, T, C, H, L = 48, 32, 16, 4, 2
HUGGING_FACE = {"model_type": "gpt2", "activation_function": "gelu", "layer_norm_epsilon": 1e-5, "vocab_size": V, "n_positions": T,
                "n_embd": C, "n_layer": L, "n_head": H, "bos_token_id": None, "eos_token_id": None}
NANO_GPT = {"model_args": {"vocab_size": V, "block_size": T, "n_embd": C, "n_layer": L, "n_head": H, "bias": True, "dropout": 0.0}}


def draw(generator, shape, mean=0.0, spread=0.3):
    count = shape[0] * (shape[1] if len(shape) == 2 else 1)
    return shape, array.array("f", (generator.gauss(mean, spread) for _ in range(count)))


def weights():
    """The tensors of a random model by their shortest names, matrices (in,out): Conv1D's."""
    generator = random.Random(7)
    tensors = {"wte.weight": draw(generator, [V, C]), "wpe.weight": draw(generator, [T, C])}
    def norm(name):
        tensors[name + ".weight"] = draw(generator, [C], 1, 0.1)
        tensors[name + ".bias"] = draw(generator, [C])
    for layer in range(L):
        norm(f"h.{layer}.ln_1")
        norm(f"h.{layer}.ln_2")
        for name, rows, columns in ("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C), ("mlp.c_proj", 4 * C, C):
            tensors[f"h.{layer}.{name}.weight"] = draw(generator, [rows, columns])
            tensors[f"h.{layer}.{name}.bias"] = draw(generator, [columns])
    norm("ln_f")
    return tensors


def transposed(tensor):
    (rows, columns), data = tensor
    return [columns, rows], array.array("f", (data[r * columns + c] for c in range(columns) for r in range(rows)))


def linear(tensors):
    """nn.Linear's (out,in): what nanoGPT has."""
    return {name: transposed(t) if ".c_" in name and name.endswith(".weight") else t for name, t in tensors.items()}


def prefixed(tensors, prefix="transformer."):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def safetensors(tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def shards(tensors, count):
    """{file name: tensors} as Hugging Face names them, and the index's text."""
    names = sorted(tensors)
    files = {f"model-{i + 1:05}-of-{count:05}.safetensors": {name: tensors[name] for name in names[i::count]} for i in range(count)}
    size = sum(4 * len(values) for _, values in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, held in files.items() for name in held}}
    return files, json.dumps(index)


class Layouts(Folder):
    def model(self, name, config, files):
        folder = self.folder / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "meta.json").write_text(json.dumps({"stoi": {chr(ord("A") + i): i for i in range(V)}}))
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    def sharded(self, name, count=3, change=lambda files: None, tensors=None):
        files, index = shards(tensors or prefixed(weights()), count)
        change(files)
        return self.model(name, HUGGING_FACE, {**{file: safetensors(held) for file, held in files.items()},
                                               "model.safetensors.index.json": index})

    def answers(self, folder):
        texts = self.file("texts.jsonl", '{"id":1,"text":"HELLO_WORLD"}\n{"id":2,"ids":[5,0,47,3]}\n')
        prompts = self.file("prompts.jsonl", '{"id":1,"prompt":"HELLO"}\n{"id":2,"ids":[7],"seed":3}\n')
        said = []
        for args in (["eval", "--score", texts, "--output", "jsonl"],
                     ["generate", "--prompts", prompts, "--output", "jsonl", "-n", 12, "-s", 1, "--logprobs", 2],
                     ["inspect", "--no-hash", "--output", "json"]):
            result = run(*args, "-m", folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            said.append(result.stdout)
        facts = json.loads(said.pop())
        files = facts.pop("files")
        self.assertEqual(files.pop("path"), str(folder))
        layout = files.pop("layout")
        return (*said, json.dumps([facts, files])), layout

    def test_the_same_weights_give_the_same_bytes_in_every_layout(self):
        tensors = weights()
        masks = {f"h.{layer}.attn.bias": ([1, 1], array.array("f", [1])) for layer in range(L)}
        head = {"lm_head.weight": tensors["wte.weight"]}
        whole = lambda named: {"model.safetensors": safetensors(named)}
        conv, rows = "Conv1D (in,out)", "nn.Linear (out,in)"
        folders = [(conv, self.model("plain", HUGGING_FACE, whole(tensors))),
                   (conv, self.model("prefixed", HUGGING_FACE, whole(prefixed(tensors)))),
                   (conv, self.model("masked", HUGGING_FACE, whole({**tensors, **masks}))),
                   (conv, self.model("other-name", HUGGING_FACE, {"weights.safetensors": safetensors(tensors)})),
                   (conv, self.model("shuffled", HUGGING_FACE, whole(dict(reversed(tensors.items()))))),
                   (conv, self.sharded("two", 2)),
                   (conv, self.sharded("three", 3, tensors=tensors)),
                   (rows, self.model("nano", NANO_GPT, whole({**prefixed(linear(tensors)), **head}))),
                   (rows, self.model("compiled", NANO_GPT, whole(prefixed(prefixed(linear(tensors)), "_orig_mod.")))),
                   (rows, self.model("nano-names", NANO_GPT["model_args"], whole(prefixed(linear(tensors))))),
                   (rows, self.sharded("nano-shards", 3, tensors=prefixed(linear(tensors))))]
        expected = None
        for layout, folder in folders:
            said, seen = self.answers(folder)
            expected = expected or said
            self.assertEqual((folder.name, seen, *said), (folder.name, layout, *expected))
        # Other weights say something else: the answers do depend on what was read.
        other = self.model("other", HUGGING_FACE, whole({**tensors, "ln_f.bias": ([C], array.array("f", [0.5] * C))}))
        self.assertNotEqual(self.answers(other)[0][0], expected[0])

    def test_an_empty_prompt_wants_a_token_to_begin_with(self):
        folder = self.model("plain", HUGGING_FACE, {"model.safetensors": safetensors(weights())})
        self.fails(7, "generate", "-p", "", "-m", folder, says="--prompt: expected a text, got none, and the model states no token")
        self.fails(7, "generate", "--prompts", self.file("p.jsonl", '{"prompt":""}'), "-m", folder, says="line 1: prompt: expected a text, got none")

    def refused(self, code, folder, *says):
        texts = self.file("texts.jsonl", '{"ids":[5,0]}\n')
        for args in (["inspect"], ["generate", "-p", "A", "-n", 1], ["eval", "--score", texts]):
            for word in says:
                self.fails(code, *args, "-m", folder, says=word)

    def test_a_shard_that_is_missing_cut_or_changed_is_named(self):
        second = "model-00002-of-00003.safetensors"
        folder = self.sharded("missing")
        (folder / second).rename(folder / "elsewhere.safetensors")
        self.refused(3, folder, str(folder / second) + ": cannot open: No such file")
        folder = self.sharded("cut")
        (folder / second).write_bytes((folder / second).read_bytes()[:-1])
        self.refused(4, folder, str(folder / second) + ": data_offsets: expected the last to end at the file's end")

    def test_a_tensor_in_the_wrong_shard_or_of_the_wrong_shape_is_named(self):
        first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
        name = "transformer.h.1.mlp.c_fc.bias"
        tensors = prefixed(weights())
        home = next(file for file, held in shards(tensors, 3)[0].items() if name in held)
        other = second if home == first else first
        index = "model.safetensors.index.json: "
        def move(files):
            files[other][name] = files[home].pop(name)
        self.refused(4, self.sharded("moved", change=move), f"{index}weight_map.{name}: expected it in {home}, got it in {other}")
        self.refused(4, self.sharded("lost", change=lambda files: files[home].pop(name)),
                     f"{index}weight_map.{name}: expected it in {home}, got no such tensor there")
        def add(files):
            files[home]["stray"] = ([1], array.array("f", [1]))
        self.refused(4, self.sharded("unlisted", change=add), f"{index}weight_map.stray: expected it listed, got it in {home}")
        def shrink(files):
            files[home][name] = ([C], files[home][name][1][:C])
        self.refused(4, self.sharded("shape", change=shrink), f"{name}: expected [64], got [16]")

    def test_what_the_model_lacks_or_has_too_much_is_named(self):
        tensors = weights()
        for change, says in ((lambda t: t.pop("h.1.attn.c_proj.weight"), "h.1.attn.c_proj.weight"),
                             (lambda t: t.update({"h.0.attn.rotary": t["ln_f.bias"]}), "h.0.attn.rotary"),
                             (lambda t: t.update({"h.1.mlp.c_fc.weight": transposed(t["h.1.mlp.c_fc.weight"])}), "h.1.mlp.c_fc.weight"),
                             (lambda t: t.update({"transformer.ln_f.bias": t["ln_f.bias"]}), "one tensor of that meaning")):
            changed = dict(tensors)
            change(changed)
            folder = self.model(f"changed-{says.split()[0]}", HUGGING_FACE, {"model.safetensors": safetensors(changed)})
            self.refused(4, folder, says)

    def test_configs_and_indexes_that_do_not_fit_are_named(self):
        for name, config, says in (("wide", {**HUGGING_FACE, "n_embd": 32}, "wte.weight"), ("heads", {**HUGGING_FACE, "n_head": 3}, "n_head"),
                                   ("args", {"model_args": {**NANO_GPT["model_args"], "block_size": "32"}}, "block_size"),
                                   ("unlike", {**HUGGING_FACE, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx")):
            self.refused(4, self.model(name, config, {"model.safetensors": safetensors(weights())}), "config.json" if says != "wte.weight" else says, says)
        folder = self.sharded("outside")
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("model-00002-of-00003", "../model-00002-of-00003"))
        self.refused(4, folder, "model.safetensors.index.json: weight_map.", "in the same folder")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
