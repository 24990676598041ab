"""From the raw measurements to the Markdown table: medians, ratios within each round, goals, share of the ceiling."""

import statistics
from collections import defaultdict

import peer_rows
from peer_rows import FAMILIES, Row


def clean_values(report: dict) -> dict:
    """{row: {engine: {round: value}}} of the undisturbed measurements."""
    values: dict = defaultdict(lambda: defaultdict(dict))
    for record in report["records"]:
        if record["clean"] and record["row"] != "ceilings":
            values[record["row"]][record["engine"]][record["round"]] = record["value"]
    return values


def machine_ceilings(report: dict) -> dict:
    """The median over rounds; disturbed rounds count only if there is no other."""
    rounds = [r for r in report["records"] if r["row"] == "ceilings"]
    rounds = [r["value"] for r in rounds if r["clean"]] or [r["value"] for r in rounds]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: list[float]) -> str:
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def ratios(ours: dict, peer: dict) -> list[float]:
    return [ours[r] / peer[r] for r in ours if r in peer]


def best_peer(row: Row, values: dict) -> str | None:
    medians = {name: statistics.median(v.values()) for name, v in values.items() if not name.startswith("inkling") and v}
    if not medians:
        return None
    return (min if row.smaller_is_better else max)(medians, key=medians.get)


def goal_cell(row: Row, values: dict, ours: dict, share: float | None) -> str:
    """Each goal with what was reached: yes or no, once there is a figure of ours."""
    parts = []

    def add(text: str, met: bool | None) -> None:
        parts.append(text if met is None else f"{text}: {'yes' if met else '**no**'}")

    for peer, factor in row.goals:
        name = best_peer(row, values) if peer == "best" else peer
        reached = ratios(ours, values.get(name, {})) if name else []
        met = None
        if reached:
            median = statistics.median(reached)
            met = median <= factor if row.smaller_is_better else median >= factor
        add(f"{'≤' if row.smaller_is_better else '≥'} {factor}× {peer}", met)
    if row.share_goal:
        add(f"≥ {row.share_goal:.0%} of ceiling", None if share is None else share >= row.share_goal)
    if row.op == "memory":
        limit = peer_rows.memory_goal_mb(row.dtype)
        add(f"≤ {limit:.0f} MB", statistics.median(ours.values()) <= limit if ours else None)
    return "; ".join(parts)


def row_cells(row: Row, values: dict, machine: dict) -> list[str]:
    ours = values.get(peer_rows.OURS[row.dtype], {})
    cells = [row.title, spread(list(ours.values())) if ours else ""]
    for family in FAMILIES[1:]:
        names = [name for name in row.engines if name.startswith(family + "-") and values.get(name)]
        lines = [f"{name.split('-', 1)[1]} {spread(list(values[name].values()))}" for name in names]
        cells.append("<br>".join(lines))
    best = best_peer(row, values)
    against = ratios(ours, values[best]) if best and ours else []
    cells.append(f"{spread(against)} × {best}" if against else "")
    limit = peer_rows.ceiling(row, machine)
    share = None
    if limit is None:
        cells += [goal_cell(row, values, ours, None), ""]
        return cells
    leader = ours or (values[best] if best else {})
    if leader:
        share = statistics.median(leader.values()) / limit
    cells.append(goal_cell(row, values, ours, share if ours else None))
    who = "" if ours else f" ({best})"
    cells.append(f"{number(limit)}: {share:.0%}{who}" if share is not None else number(limit))
    return cells


def ceiling_table(machine: dict) -> list[str]:
    counts = sorted({int(name.rsplit("_", 1)[1][:-1]) for name in machine})
    lines = ["| measured ceiling | " + " | ".join(f"{n} thread{'s' if n > 1 else ''}" for n in counts) + " |",
             "|---|" + "--:|" * len(counts)]
    titles = {"fma_gflops": "f32 FMA, GFLOP/s", "bf16_gflops": "vdpbf16ps, GFLOP/s", "vnni_gops": "VNNI int8, GOP/s"}
    titles |= {f"read{mb}_gbs": f"read {mb} MB, GB/s" for mb in (500, 250, 125, 65)}
    for key, title in titles.items():
        lines.append(f"| {title} | " + " | ".join(number(machine[f"{key}_{n}t"]) for n in counts) + " |")
    return lines


def table(report: dict) -> str:
    values, machine = clean_values(report), machine_ceilings(report)
    about = report["machine"]
    rounds = 1 + max(r["round"] for r in report["records"])
    disturbed = sum(not r["clean"] for r in report["records"])
    lines = [
        f"{about['cpu']}, {about['cpus']} CPUs, {report['threads']} threads unless stated, kernel {about['kernel']}, "
        f"{about['compiler']}, commit {about['commit']}, {about['date']}. GPT-2 124M, random weights. "
        f"{rounds} interleaved rounds: median (min–max); ratios are taken within a round. "
        f"{disturbed} of {len(report['records'])} measurements stayed disturbed (steal > {report['limits']['steal']:.0%} "
        f"or other processes > {report['limits']['foreign']:.0%}) and are left out.",
        "",
        "| row | Inkling | llama.cpp | CTranslate2 | PyTorch | ours ÷ best peer | goal | ceiling: share |",
        "|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in peer_rows.make_rows(report["threads"], report["decode_tokens"]):
        if row.key in values:
            lines.append("| " + " | ".join(row_cells(row, values[row.key], machine)) + " |")
    lines += ["", *ceiling_table(machine), ""]
    versions = {info["version"] for info in report["engines"].values() if "version" in info}
    lines.append("Engines: " + "; ".join(sorted(versions)) + ".")
    lines += [f"Left out: {text}." for text in report["left_out"]]
    return "\n".join(lines) + "\n"
