#!/usr/bin/env python3
"""Keeps the columns of a summary.csv that the notebooks read, gzipped. Standard library only.

    python3 notebooks/shrink.py kvlab-out/study/summary.csv notebooks/data/study.csv.gz

There may be several summaries: what was simulated in more than one stands once.

Of folders of `kvlab validate` it keeps the numbers, what was found of errors, and every 50th step:

    python3 notebooks/shrink.py --validate kvlab-out/light kvlab-out/tiny notebooks/data

The same input gives the same bytes.
"""

import csv
import gzip
import io
import pathlib
import sys

STEP_COLUMNS = ["scenario", "policy", "kind", "tokens", "sequences", "step_ns", "predicted_ns"]
COLUMNS = [
    "row", "policy", "trace", "seed", "model", "gpu", "num_parallel", "variant",
    "requests", "completed", "failed", "crashes", "corrupted_steps", "throughput_tokens_per_s",
    "goodput_requests_per_s", "ttft_p99_ms", "recomputed_tokens", "cached_tokens",
    "stall_s", "cells_copied", "utilisation_mean", "fragmentation_internal_mean", "fragmentation_external_mean",
]  # fmt: skip


def short(text):
    try:
        number = float(text)
    except ValueError:
        return text.rsplit("/", 1)[-1] if ".csv" in text else text
    # Five digits are more than any figure shows.
    return text if number == int(number) and "." not in text else f"{number:.5g}"


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path, columns, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([short(row[column]) for column in columns] for row in rows)
    with open(path, "wb") as file:
        file.write(gzip.compress(text.getvalue().encode(), 9, mtime=0))


def validations(folders, target):
    for name, part in [("validate", slice(None)), ("errors", slice(None)), ("steps", slice(None, None, 50))]:
        rows = []
        for folder in map(pathlib.Path, folders):
            rows += [{"scenario": folder.name, **row} for row in rows_of(folder / f"{name}.csv")[part]]
        columns = STEP_COLUMNS if name == "steps" else list(rows[0])
        write(pathlib.Path(target) / f"engine-{name}.csv.gz", columns, rows)


def main():
    if sys.argv[1:2] == ["--validate"]:
        return validations(sys.argv[2:-1], sys.argv[-1])
    *sources, target = sys.argv[1:]
    rows = {}
    for row in (row for source in sources for row in rows_of(source)):
        rows.setdefault((row["row"], row["spec_key"]), row)
    rows = list(rows.values())
    # A column that says the same everywhere says nothing, but for the few that say what was run.
    named = {"policy", "trace", "seed", "requests", "completed", "throughput_tokens_per_s"}
    write(target, [c for c in COLUMNS if c in named or len({row[c] for row in rows}) > 1], rows)


main()
