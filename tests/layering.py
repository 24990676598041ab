"""The graph of folders and the places of other libraries, read off the includes; and no inline function of an ISA's own object where others can pick it.

    python3 tests/layering.py SOURCE_DIR [OBJECT ...]
"""

import pathlib
import re
import subprocess
import sys

# folder: what it may include besides itself. base is engine/base, the only files that everything may use.
ALLOWED = {
    "base": set(),
    "engine": {"base"},
    "attention": {"base", "engine"},
    "weights": {"base", "engine"},
    "tokenizer": {"base"},
    "model": {"base", "engine", "attention", "weights"},
    "apps": {"base", "engine", "attention", "weights", "tokenizer", "model"},
}
# Headers of other libraries, and the only files (as patterns) that may see them.
ONLY_IN = {"spdlog/": ["engine/base/log.cpp"], "sentencepiece_": ["tokenizer/*"], "pcre2.h": ["tokenizer/*"],
           "openssl/": ["weights/sha256.cpp"], "mpi.h": ["model/train/mpi_communicator.cpp"], "CLI/": ["apps/*"],
           "cuda": ["engine/cuda/*", "attention/cuda/*", "model/cuda/*"], "cublas": ["engine/cuda/*"], "cub/": ["engine/cuda/*.cu"]}
SOURCES = (".h", ".cpp", ".cu", ".cuh")


def layer(path):
    return "base" if path.parts[:2] == ("engine", "base") else path.parts[0]


def check_includes(top):
    faults = []
    for path in sorted(p for folder in ALLOWED if folder != "base" for p in (top / folder).rglob("*") if p.suffix in SOURCES):
        where = path.relative_to(top)
        mine = layer(where)
        for name in re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M):
            for prefix, patterns in ONLY_IN.items():
                if name.startswith(prefix) and not any(where.match(pattern) for pattern in patterns):
                    faults.append(f"{where} includes {name}, which belongs to {', '.join(patterns)}")
            target = pathlib.PurePosixPath(name)
            if target.parts[0] in ALLOWED and target.parts[0] != "base":
                other = layer(target)
                if other != mine and other not in ALLOWED[mine]:
                    faults.append(f"{where} includes {name}: {mine} must not know {other}")
    return faults


def check_objects(objects):
    """Weak symbols outside our namespace, in code compiled for one instruction set, could replace portable ones."""
    faults = []
    for path in objects:
        listing = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            kind, name = line.split(maxsplit=2)[1:]
            if kind in "WV" and "inkling::" not in name:
                faults.append(f"{path}: {name} is weak and could be picked for other machines")
    return faults


def main():
    top = pathlib.Path(sys.argv[1])
    faults = check_includes(top) + check_objects(sys.argv[2:])
    for fault in faults:
        print(fault)
    print(f"layering: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
