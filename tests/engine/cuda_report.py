#!/usr/bin/env python3
"""What the compiler made of the kernels, read from the built objects; no GPU is wanted.

    cuda_report.py FOLDER_OF_CUOBJDUMP OBJECT…

Each kernel keeps its values in registers, but for those of KNOWN, and those of INSTRUCTIONS have what they were written
for. Exits with 1 on faults, and with 77 (left out) where there is no cuobjdump.
"""
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

# Kernels that spill: pattern of the name, most bytes of a thread's stack, why they are left so.
KNOWN = [
    (r"forward_mma_kernel<\w+, 256, \w+>", 64, "D = 256 wants more than the 255 registers that there are"),
    (r"forward_mma_kernel<(__half|__nv_bfloat16), 64, false>", 96, "128 registers, so that two blocks share a processor"),
    (r"forward_hopper_kernel<\w+, (32|64|128), \(Drawing\)1>", 80, "dropout: Philox beside the scores"),
    (r"forward_hopper_kernel<\w+, 64, \(Drawing\)2>", 24, "dropout: 128 registers, so that two blocks share a processor"),
    (r"backward_hopper_kernel<\w+, 128, \w*", 16, "72 registers for dQ, since the sums of dK and dV want 208"),
    (r"backward_keys_kernel<(__half|__nv_bfloat16), (64|128|256), \w+>", 80, "128 registers for two blocks a processor; D = 256"),
    (r"backward_queries_kernel<float, 256, true>", 16, "D = 256"),
    (r"decode_kernel<float, 256, true>", 48, "D = 256"),
    (r"few_rows_kernel<FewTile<float, 16>, float, 6>", 16, "128 registers, two too few"),
    (r"top_kernel", 16, "64 registers a thread of 1024, for compute capability 8.0 two too few"),
]

# Object, architecture: kernel and the instructions that it must have.
INSTRUCTIONS = {
    ("product_hopper", "sm_90a"): (r"product_kernel<", ["HGMMA", "UTMALDG"]),
    ("linear_hopper", "sm_90a"): (r"hopper_kernel<", ["HGMMA", "UTMALDG"]),
    ("linear_quant_hopper", "sm_90a"): (r"quant_kernel<", ["HGMMA", "UTMALDG"]),
    ("linear_wide", "sm_90a"): (r"wide_kernel<", ["HGMMA", "UTMALDG"]),
    ("forward_hopper", "sm_90a"): (r"forward_hopper_kernel<", ["HGMMA", "UTMALDG"]),
    ("backward_hopper", "sm_90a"): (r"backward_hopper_kernel<", ["HGMMA", "UTMALDG", "UBLKRED"]),
    ("decode_few", "sm_90a"): (r"decode_(stream|team)_kernel<", ["HMMA", "LDGSTS"]),
    ("layers_kernel", "sm_90a"): (r"layers_kernel<", ["HMMA", "UBLKCP", "STAS"]),
    ("products_kernel", "sm_90a"): (r"products_kernel<", ["HMMA", "UBLKCP"]),
    ("linear", "sm_80"): (r"(many|few)_rows_kernel<", ["HMMA"]),
    ("linear_few", "sm_80"): (r"few_rows_kernel<", ["HMMA"]),
    ("linear_quant", "sm_80"): (r"few_rows_kernel<", ["HMMA"]),
    ("forward_mma", "sm_80"): (r"forward_mma_kernel<", ["HMMA"]),
}


def read(tool, arguments):
    dump = subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout
    text = subprocess.run(["c++filt"], input=dump, check=True, capture_output=True, text=True).stdout
    return text.replace("(anonymous namespace)::", "").replace("inkling::cuda::", "").splitlines()


def spills(tool, path):
    """(architecture, kernel, bytes of stack) of every kernel."""
    architecture = kernel = ""
    for line in read(tool, ["--dump-resource-usage", path]):
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (.*):$", line):
            kernel = found[1]
        elif found := re.search(r"STACK:(\d+) .*LOCAL:(\d+)", line):
            yield architecture, kernel, int(found[1]) + int(found[2])


def instructions(tool, path, architecture):
    """The number of each instruction of each kernel, by the part of its name before the first dot."""
    counts, kernel = {}, ""
    for line in read(tool, ["-arch", architecture, "--dump-sass", path]):
        if found := re.match(r"\s*Function : (.*)$", line):
            kernel = found[1]
            counts[kernel] = collections.Counter()
        elif kernel and (found := re.match(r"\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", line)):
            counts[kernel][found[1]] += 1
    return counts


def spill_faults(tool, path):
    kernels, faults = 0, []
    for architecture, kernel, stack in spills(tool, path):
        kernels += 1
        most = max((most for pattern, most, _ in KNOWN if re.search(pattern, kernel)), default=0)
        if stack > most:
            faults.append(f"{architecture}: {kernel}: {stack} bytes of stack, at most {most} are known")
    return kernels, faults


def instruction_faults(tool, path, stem, architecture):
    pattern, wanted = INSTRUCTIONS[stem, architecture]
    kernels = {k: c for k, c in instructions(tool, path, architecture).items() if re.search(pattern, k)}
    faults = [] if kernels else [f"{architecture}: {stem}: no kernel {pattern}"]
    for kernel, counts in kernels.items():
        faults += [f"{architecture}: {kernel}: no {name}" for name in wanted if counts[name] == 0]
    return len(kernels), faults


def main():
    folder, *objects = sys.argv[1:]
    tool = shutil.which("cuobjdump", path=os.pathsep.join([folder, os.environ.get("PATH", "")]))
    if tool is None:
        print("cuda_report: no cuobjdump, left out")
        return 77
    paths = {pathlib.Path(path).name.split(".")[0]: path for path in objects}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = [pool.submit(spill_faults, tool, path) for path in objects]
        read_through = [pool.submit(instruction_faults, tool, paths[stem], stem, architecture)
                        for stem, architecture in INSTRUCTIONS]
        results = [job.result() for job in looked + read_through]
    faults = [fault for _, found in results for fault in found]
    for fault in faults:
        print(fault)
    kernels = sum(count for count, _ in results[:len(objects)])
    print(f"cuda_report: {kernels} kernels, {sum(count for count, _ in results[len(objects):])} of them read through, "
          f"{len(faults)} faults")
    return 1 if faults or kernels == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
