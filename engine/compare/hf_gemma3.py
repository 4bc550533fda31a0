#!/usr/bin/env python3
"""Times decode steps of PyTorch/transformers beside ours: the same shapes with random weights, the same
batch and context, a static cache, eager and compiled, alternately in one run. Prints a table and, with
--json, writes every sample.

Needs torch, transformers and a CUDA device; ours is the program kvlab, whose path `--ours` gives. With
`--device cpu` the script itself can be tried on a tiny model without a GPU (`--models gemma3-tiny --context 64`).
"""

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {
    # hidden, layers, heads, kv heads, head dim, ffn, query scalar, window, vocab, positions, global factor
    "gemma3-tiny": (64, 7, 4, 2, 32, 160, 24, 16, 512, 4096, 8.0),
    "gemma3-1b": (1152, 26, 4, 1, 256, 6912, 256, 512, 262144, 32768, 1.0),
    "gemma3-4b": (2560, 34, 8, 4, 256, 10240, 256, 1024, 262208, 131072, 8.0),
    "gemma3-12b": (3840, 48, 16, 8, 256, 15360, 256, 1024, 262208, 131072, 8.0),
    "gemma3-27b": (5376, 62, 32, 16, 128, 21504, 168, 1024, 262208, 131072, 8.0),
}


def build(name, device):
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    hidden, layers, heads, kv, dim, ffn, scalar, window, vocab, positions, factor = SIZES[name]
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    full = {"rope_type": "default", "rope_theta": 1e6}
    if factor != 1.0:
        full = {"rope_type": "linear", "factor": factor, "rope_theta": 1e6}
    config = Gemma3TextConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=dim, intermediate_size=ffn, query_pre_attn_scalar=scalar,
        sliding_window=window, max_position_embeddings=positions, layer_types=kinds,
        rope_parameters={"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        attn_implementation="sdpa",
    )
    config.dtype = torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Gemma3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


class Decoder:
    """One model and one static cache, filled once; every call decodes one token of each sequence."""

    def __init__(self, model, batch, context, spare, device):
        import torch
        from transformers import StaticCache

        self.torch, self.model, self.context = torch, model, context
        # Since 5.24 the cache is passed under another name.
        named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self.cache = {named: StaticCache(config=model.config, max_cache_len=context + spare)}
        self.tokens = torch.randint(0, model.config.vocab_size, (batch, 1), device=device)
        self.compiled = None
        step = max(1, 8192 // batch)
        text = torch.randint(0, model.config.vocab_size, (batch, context - 1), device=device)
        with torch.inference_mode():
            for first in range(0, context - 1, step):
                model(input_ids=text[:, first:first + step], **self.cache, use_cache=True, logits_to_keep=1)
        if device == "cuda":
            torch.cuda.synchronize()

    def step(self, call):
        start = time.perf_counter()
        with self.torch.inference_mode():
            logits = call(input_ids=self.tokens, **self.cache, use_cache=True, logits_to_keep=1).logits
            self.tokens = logits[:, -1].argmax(-1, keepdim=True).clone()
            self.tokens.tolist()
        return time.perf_counter() - start

    def eager(self, steps):
        return [self.step(self.model) for _ in range(steps)]

    def fast(self, steps, warm):
        if self.compiled is None:
            self.compiled = self.torch.compile(self.model, mode="reduce-overhead")
            for _ in range(warm):
                self.torch.compiler.cudagraph_mark_step_begin()
                self.step(self.compiled)
        times = []
        for _ in range(steps):
            self.torch.compiler.cudagraph_mark_step_begin()
            times.append(self.step(self.compiled))
        return times


def ours(program, name, batch, context):
    """One run of ours, in a process of its own: the median of its decode steps in seconds."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [program, "engine", "bench", "--device", "cuda", "--synthetic", name, "--batch", str(batch),
                   "--context", str(context), "--prefill", "512", "--moves", "64", "--json", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            raise RuntimeError(f"ours ended with {done.returncode}: {done.stderr[-300:]}")
        with open(file.name) as written:
            measured = json.load(written)
    if not measured["decode"]:
        raise RuntimeError(f"ours: {measured['skipped']}")
    return measured["decode"][0]["step_seconds"]["median"]


def cell(args, model, name, batch, context):
    spare = args.rounds * args.steps * 2 + 24
    row = {"model": name, "batch": batch, "context": context, "ours": [], "eager": [], "compiled": []}
    try:
        decoder = Decoder(model, batch, context, spare, args.device)
        for turn in range(args.rounds):
            if args.ours:
                row["ours"].append(ours(args.ours, name, batch, context))
            if "eager" in args.ways:
                row["eager"] += decoder.eager(args.steps)[2 if turn == 0 else 0:]
            if "compiled" in args.ways:
                row["compiled"] += decoder.fast(args.steps, 6)
    except Exception as error:  # a cell that fails must not cost the others
        row["error"] = f"{type(error).__name__}: {error}"[:400]
    middle = {way: statistics.median(row[way]) for way in ("ours", "eager", "compiled") if row[way]}
    row["tokens_per_second"] = {way: batch / seconds for way, seconds in middle.items()}
    if "ours" in middle:
        row["ratio"] = {way: middle[way] / middle["ours"] for way in ("eager", "compiled") if way in middle}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="gemma3-1b,gemma3-4b")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--context", default="4096")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ways", default="eager,compiled", help="of transformers")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--ours", default=None, help="the program kvlab")
    parser.add_argument("--json", default=None)
    args = parser.parse_args()

    unknown = [name for name in args.models.split(",") if name not in SIZES]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; expected {', '.join(SIZES)}")
    try:
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"{error}: this comparison needs torch and transformers (pip install torch transformers)")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; --device cpu tries this script without one")

    device = torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu"
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}
    print(json.dumps(about), flush=True)
    rows = []
    for name in args.models.split(","):
        start = time.perf_counter()
        model = build(name, args.device)
        print(f"{name}: built in {time.perf_counter() - start:.1f} s", flush=True)
        for context in map(int, args.context.split(",")):
            for batch in map(int, args.batch.split(",")):
                start = time.perf_counter()
                row = cell(args, model, name, batch, context)
                rows.append(row)
                speed = ", ".join(f"{way} {rate:.1f}" for way, rate in row["tokens_per_second"].items())
                ratio = ", ".join(f"{value:.2f} x {way}" for way, value in row.get("ratio", {}).items())
                told = f"; ours is {ratio}" if ratio else ""
                print(f"{name} batch {batch} context {context}: tok/s {speed}{told} {row.get('error', '')} "
                      f"[{time.perf_counter() - start:.1f} s]", flush=True)
                torch._dynamo.reset()
                if args.device == "cuda":
                    torch.cuda.empty_cache()
                if args.json:  # whole or not at all, whenever this is stopped
                    with open(args.json + ".part", "w") as file:
                        json.dump({"about": about, "rows": rows}, file, indent=1)
                    os.replace(args.json + ".part", args.json)
        del model
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
