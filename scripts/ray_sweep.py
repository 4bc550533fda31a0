#!/usr/bin/env python3
"""Runs a kvlab sweep on a Ray cluster. It knows nothing of simulations: it lists specs, hands each to
`kvlab task` on some node, and writes what comes back. Stopped at any time, it goes on where it was.

    pip install ray==2.60.0                    # and the same token on every node: docs/cluster.md
    python scripts/ray_sweep.py target/release/kvlab scenarios/sweep-small.toml --out results
"""
import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray  # noqa: E402


def write(path, content, mode=0o644):
    """Whole under its name, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    os.replace(file.name, path)


def unpacked(content, mode):
    """A file of this node with this content, written once and named by its hash."""
    path = Path.home() / ".cache" / "kvlab" / hashlib.sha256(content).hexdigest()
    if not path.exists():
        write(path, content, mode)
    return path


@ray.remote(max_retries=5, retry_exceptions=[ChildProcessError])
def run(binary, names, lines, *contents):
    """Exit code, result and last words of every spec."""
    program, ends = unpacked(binary, 0o755), []
    with tempfile.TemporaryDirectory() as base:
        for name, content in zip(names, contents):
            Path(base, name).parent.mkdir(parents=True, exist_ok=True)
            Path(base, name).symlink_to(unpacked(content, 0o644))
        for line in lines:
            end = subprocess.run([program, "task", "--base", base], input=line, capture_output=True)
            if end.returncode < 0:  # a signal, which says nothing of the spec
                raise ChildProcessError(f"signal {-end.returncode}: {line.decode()}")
            ends.append((end.returncode, end.stdout, end.stderr[-4000:].decode(errors="replace")))
    return ends


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kvlab"), parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=20, help="specs at once; they should last a second or more")
    parser.add_argument("--address", default="auto", help="of the cluster; local: one on this machine")
    options = parser.parse_args()
    plan = ["sweep", options.sweep, "--plan", "--out", options.out]
    subprocess.run([options.kvlab, *plan], stdout=subprocess.DEVNULL, check=True)
    lock = open(options.out / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_SH)  # kvlab clears up only where nobody writes
    specs = [(json.loads(line), line) for line in (options.out / "sweep.jsonl").read_bytes().splitlines()]
    at = lambda spec, end: options.out / spec["key"][:2] / f"{spec['key']}.{end}"  # noqa: E731
    left = [spec for spec in specs if not at(spec[0], "json").exists()]
    print(f"{len(specs)} simulations, {len(left)} to do", file=sys.stderr)
    ray.init(address=options.address, log_to_driver=False)
    binary, put, running, failed = ray.put(Path(options.kvlab).read_bytes()), {}, {}, 0
    while left or running:
        while left and len(running) < 4 * max(1, int(ray.cluster_resources().get("CPU", 1))):
            batch, left = left[: options.batch], left[options.batch :]
            names = sorted({name for spec, _ in batch for name in spec["files"]})
            for name in set(names) - put.keys():
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    sys.exit(f"{name}: expected a path below the folder of the sweep")
                put[name] = ray.put((options.sweep.parent / name).read_bytes())
            running[run.remote(binary, names, [line for _, line in batch], *[put[n] for n in names])] = batch
        for ready, batch in [(ready, running.pop(ready)) for ready in ray.wait(list(running))[0]]:
            try:
                ends = ray.get(ready)
            except ray.exceptions.RayError as error:  # a signal or a lost node, time after time
                ends = [(-1, b"", str(error)[-4000:])] * len(batch)
            for (spec, _), (code, result, words) in zip(batch, ends):
                if code == 0:
                    at(spec, "failed.json").unlink(missing_ok=True)
                    write(at(spec, "json"), result)
                    continue
                failed += 1
                kept = {"error": words, **{name: spec[name] for name in ("key", "row", "settings")}}
                write(at(spec, "failed.json"), json.dumps(kept).encode() + b"\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
