"""Checks what training wrote: the model against transformers.

    python training/check.py --model DIR --expected FILE

compares the logits of `Gemma3ForCausalLM`, loaded from DIR, with those of `model.py` and writes a few of them to
FILE, against which the engine's tests compare.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM

import corpus
from model import Config, Model

# Rows whose logits are written: within the first window, at its end, and far beyond it.
ROWS = [0, 27, 63, 64, 200, 319]


@torch.no_grad()
def check_model(path, expected):
    """The model computes what transformers computes."""
    torch.set_num_threads(1)
    theirs = Gemma3ForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    config = Config()
    # transformers rounds the scale to the type of the weights: f32 here, bf16 in the file.
    theirs.model.embed_tokens.embed_scale.fill_(config.bf16_scale())
    ours = Model(config)
    tensors = load_file(path / "model.safetensors")
    ours.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    document = corpus.dialogue(corpus.document_rng(4, 0), 192, 128)
    tokens = torch.tensor([document.tokens])
    logits = theirs(tokens).logits[0]
    worst = (logits - ours(tokens)[0][0]).abs().max().item()
    print(f"largest difference to transformers: {worst:.2e}")
    if not worst < 1e-4:
        raise SystemExit("the model is not transformers' Gemma 3")
    rows = [{"row": row, "logits": [round(x, 5) for x in logits[row].tolist()]} for row in ROWS]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    expected.write_text(f'{{"tokens":{json.dumps(document.tokens, separators=(",", ":"))},\n"rows":[\n{lines}\n]}}\n')


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Checks the corpus and the model.")
    parser.add_argument("--model", type=Path, required=True, help="directory with config.json and model.safetensors")
    parser.add_argument("--expected", type=Path, required=True, help="file for a few expected logits")
    arguments = parser.parse_args()
    corpus.check()
    check_model(arguments.model, arguments.expected)


if __name__ == "__main__":
    main()
