#!/usr/bin/env python3
"""Cuts the windows of scenarios/study.toml out of public traces. Standard library and kvlab only.

    python3 scripts/study_traces.py TRACES OUT --kvlab target/release/kvlab

TRACES holds the files of docs/study.md, gzipped; OUT gets NAME-SEED.csv.gz, six windows a trace that have no
request in common. The linked keys of scenarios/study.toml, slots for every pressure, come from

    python3 scripts/study_traces.py TRACES OUT --table
"""

import argparse
import csv
import gzip
import json
import pathlib
import shutil
import subprocess
import tempfile

# Lists of prefix ids are long.
csv.field_size_limit(1 << 30)

SEEDS = 6
# Requests of a window: more where they are short and many run at once.
LONG, SHORT = 300, 600
# Agent contexts are longer than small GPUs can hold: their tokens are divided by this.
AGENT_TOKENS_BY = 4
AGENT_SESSIONS, AGENT_REQUESTS = 45, 7
# Desktops of the incident that share a server: each a program and two people, and their first requests.
DESKTOPS, DESKTOP_REQUESTS = 150, 4
# Waits are divided by this, so that a free slot always finds a request.
TIME_BY = 1000


def lines_of(path):
    with gzip.open(path, "rt", newline="") as file:
        yield from file


def write_lines(path, lines):
    with gzip.open(path, "wt", newline="") as file:
        file.writelines(lines)


def run(*command):
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(answer.stderr)
    return answer.stdout


def convert(kvlab, source, target, *flags):
    run(kvlab, "trace", "convert", source, target, *flags)


def window(lines, seed, length):
    return lines[seed * length : (seed + 1) * length]


def azure(traces, kvlab, out, scratch, kind):
    header, *rows = lines_of(traces / f"azure/AzureLLMInferenceTrace_{kind}.part0.csv.gz")
    for seed in range(SEEDS):
        # Windows lie apart, so that they see different hours of the trace.
        rows_of = window(rows, seed, len(rows) // SEEDS)[:SHORT]
        write_lines(scratch / "window.csv.gz", [header, *rows_of])
        convert(kvlab, scratch / "window.csv.gz", out / f"azure-{kind}-{seed}.csv.gz", "--time-by", TIME_BY)


def mooncake(traces, kvlab, out, scratch):
    rows = list(lines_of(traces / "mooncake/conversation_trace.part0.jsonl.gz"))
    for seed in range(SEEDS):
        rows_of = window(rows, seed, len(rows) // SEEDS)[:LONG]
        write_lines(scratch / "window.jsonl.gz", rows_of)
        flags = ["--time-by", TIME_BY, "--seed", seed]
        convert(kvlab, scratch / "window.jsonl.gz", out / f"mooncake-{seed}.csv.gz", *flags)


def ragpulse(traces, kvlab, out, scratch):
    for table in (traces / "ragpulse").glob("[1-5]_*"):
        shutil.copyfile(table, scratch / table.name)
    rows = list(lines_of(traces / "ragpulse/0_trace.week0.jsonl.gz"))
    for seed in range(SEEDS):
        rows_of = window(rows, seed, len(rows) // SEEDS)[:LONG]
        write_lines(scratch / "0_trace.jsonl.gz", rows_of)
        # A request a minute and more, made one in a few milliseconds.
        flags = ["--time-by", TIME_BY * 1000]
        convert(kvlab, scratch / "0_trace.jsonl.gz", out / f"ragpulse-{seed}.csv.gz", *flags)


def agents(traces, kvlab, out, scratch):
    sessions = []
    for name in ("traces_0200_0379", "traces_0600_0699"):
        sessions += lines_of(traces / f"claude_code_agent/{name}.jsonl.gz")
    for seed in range(SEEDS):
        cut = []
        # The files are in the order of their collection: every window gets some of each part.
        for line in sessions[seed::SEEDS][:AGENT_SESSIONS]:
            session = json.loads(line)
            session["requests"] = [r for r in session["requests"] if r["type"] != "subagent"][:AGENT_REQUESTS]
            cut.append(json.dumps(session) + "\n")
        write_lines(scratch / "sessions.jsonl.gz", cut)
        flags = ["--session-rate", 1, "--seed", seed, "--tokens-by", AGENT_TOKENS_BY, "--time-by", TIME_BY]
        convert(kvlab, scratch / "sessions.jsonl.gz", out / f"agents-{seed}.csv.gz", *flags)


def incident(kvlab, out, scratch):
    for seed in range(SEEDS):
        groups, header = [], ""
        for desktop in range(DESKTOPS):
            flags = ["--requests", DESKTOP_REQUESTS, "--seed", 1000 * (seed + 1) + desktop]
            run(kvlab, "trace", "generate", "screenshots", scratch / "one.csv.gz", *flags)
            header, *rows = csv.reader(lines_of(scratch / "one.csv.gz"))
            for row in rows:
                # Sessions of different desktops are different.
                row[header.index("session")] = str(int(row[header.index("session")] or 0) + 1000 * desktop)
                if row[header.index("arrival_s")]:
                    groups.append([])
                groups[-1].append(row)
        groups.sort(key=lambda group: float(group[0][header.index("arrival_s")]))
        lines = [",".join(row) + "\n" for group in groups for row in group]
        write_lines(scratch / "merged.csv.gz", [",".join(header) + "\n", *lines])
        # Desktops join within a second and wait for next to nothing.
        flags = ["--time-by", TIME_BY]
        convert(kvlab, scratch / "merged.csv.gz", out / f"incident-{seed}.csv.gz", *flags)


# Trace, context limit.
WORKLOADS = [
    ("azure-conv", 8192),
    ("azure-code", 8192),
    ("mooncake", 32768),
    ("ragpulse", 8192),
    ("agents", 65536),
    ("incident", 8192),
]
# Model, GPU; bytes of K and V of a token in all local and in all global layers, as `kvlab models` has them.
MACHINES = [
    ("gemma3-4b-q4_0", "gtx1660super", 29 * 4096, 5 * 4096),
    ("gemma3-12b-q4_0", "rtx4090", 40 * 8192, 8 * 8192),
    ("gemma3-27b-q4_0", "rtx8000", 52 * 8192, 10 * 8192),
]
PRESSURES = [0.5, 1, 2, 4]
# Share of the cells that admission keeps free, and of which workloads.
WATERMARKS = [(0, [name for name, _ in WORKLOADS]), (0.05, ["azure-conv", "ragpulse"])]
WINDOW = 1024
# Every slot needs a token of a batch.
NUM_BATCH = 512


def table(kvlab, out):
    """The linked keys: slots so that the mean request in each needs PRESSURE times the cache."""
    columns = {key: [] for key in ("trace", "model", "gpu", "num_ctx", "num_parallel", "watermark")}
    for watermark, names in WATERMARKS:
        for name, num_ctx in (workload for workload in WORKLOADS if workload[0] in names):
            for model, gpu, local, total in MACHINES:
                ends = ends_of(out, name, num_ctx)
                need = sum(local * min(end, WINDOW) + total * end for end in ends) / len(ends)
                cache = cache_bytes(kvlab, out / f"{name}-0.csv.gz", model, gpu, num_ctx, local, total)
                for pressure in PRESSURES:
                    columns["trace"].append(f"../kvlab-out/study-traces/{name}-{{seed}}.csv.gz")
                    columns["model"].append(model)
                    columns["gpu"].append(gpu)
                    columns["num_ctx"].append(num_ctx)
                    columns["num_parallel"].append(min(NUM_BATCH, max(1, round(pressure * cache / need))))
                    columns["watermark"].append(watermark)
    print("[[link]]")
    for key, values in columns.items():
        print(f"{key} = [")
        each = 1 if key == "trace" else 4
        for start in range(0, len(values), 4):
            # Pressures stand side by side.
            of = values[start : start + 4]
            lines = [of[i : i + each] for i in range(0, 4, each)]
            for line in lines:
                print("    " + ", ".join(json.dumps(value) for value in line) + ",")
        print("]")


def ends_of(out, name, num_ctx):
    """Lengths of all requests that fit the context, at their ends."""
    ends = []
    for seed in range(SEEDS):
        header, *rows = csv.reader(lines_of(out / f"{name}-{seed}.csv.gz"))
        prompt, output = header.index("prompt_tokens"), header.index("output_tokens")
        ends += [int(row[prompt]) + int(row[output]) for row in rows if int(row[prompt]) <= num_ctx]
    return ends


def cache_bytes(kvlab, trace, model, gpu, num_ctx, local, total):
    """What the cache has, as kvlab sizes it for 16 slots."""
    flags = ["--model", model, "--gpu", gpu, "--num-ctx", num_ctx, "--num-parallel", 16]
    flags += ["--policies", "paged", "--seeds", 1, "--no-files", "--quiet", "--format", "csv"]
    answer = run(kvlab, "compare", trace, "--limit", 1, *flags)
    cells = next(csv.DictReader(answer.splitlines()))["cells"]
    cells = dict(part.split("=") for part in cells.split(";"))
    return int(cells["local"]) * local + int(cells["global"]) * total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kvlab", default="target/release/kvlab")
    parser.add_argument("--table", action="store_true", help="print the linked keys of scenarios/study.toml")
    arguments = parser.parse_args()
    traces, out, kvlab = arguments.traces, arguments.out, arguments.kvlab
    if arguments.table:
        return table(kvlab, out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        azure(traces, kvlab, out, scratch, "conv")
        azure(traces, kvlab, out, scratch, "code")
        mooncake(traces, kvlab, out, scratch)
        ragpulse(traces, kvlab, out, scratch)
        agents(traces, kvlab, out, scratch)
        incident(kvlab, out, scratch)


main()
