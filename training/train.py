"""Trains the tiny model from nothing: about 4 million tokens, 15 to 30 minutes on one core.

    python training/train.py --out DIR            writes checkpoints, training-log.csv and, at the end, the model
    python training/train.py --out DIR            again, after an interruption: goes on from the last checkpoint

Stages grow the length of the text. A stage ends when the recall of facts is high enough (a running mean over the
batches, which no step has seen before), or fails after its longest number of steps.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import corpus
from model import Config, Model

ANSWER_WEIGHT, CHAT_WEIGHT, OTHER_WEIGHT = 5.0, 1.0, 0.3
SINK_WEIGHT = 0.02
TRAINING = 0x7472_6169_6E00_0000  # seeds of training corpora; the quality command's are small numbers


def pair_text(low, high):
    """Pairs and questions about them."""
    return lambda rng, length: corpus.pairs(rng, length, low + rng.below(high - low + 1))


def question_text(rng, length):
    """Half pairs, half a system turn with questions."""
    return pair_text(5, 16)(rng, length) if rng.below(2) else corpus.questions(rng, length)


def dialogue_text(rng, length):
    """Half dialogues, half dialogues with many facts."""
    exam = 128 if length >= 512 else 0
    return corpus.dialogue(rng, length - exam, exam, corpus.DENSE if rng.below(2) else corpus.PLAIN)


def exam_text(rng, length):
    """Dialogues with an exam, as the quality command's."""
    return corpus.dialogue(rng, length - 128, 128)


@dataclass
class Stage:
    """Text of one length."""

    name: str
    text: object
    length: int
    batch: int
    # At least and at most so many steps; in between, until the recall is reached.
    least: int
    most: int
    recall: float
    all_weights: bool = True
    sink: bool = False
    decay: bool = False


STAGES = [
    Stage("pairs-16", pair_text(2, 4), 16, 64, 100, 3000, 0.96, all_weights=False),
    Stage("pairs-64", pair_text(5, 16), 64, 16, 40, 600, 0.95, all_weights=False),
    Stage("questions-128", question_text, 128, 8, 40, 600, 0.95),
    Stage("dialogue-256", dialogue_text, 256, 8, 40, 600, 0.95),
    Stage("dialogue-512", dialogue_text, 512, 6, 60, 600, 0.95),
    Stage("sink-512", dialogue_text, 512, 6, 150, 150, 0.0, sink=True),
    Stage("sink-1152", exam_text, 1152, 4, 300, 300, 0.0, sink=True, decay=True),
]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by Newton-Schulz steps (Jordan et al. 2024)."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonal(p.grad.lerp(state["momentum"], group["momentum"]))
                p.add_(direction, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(matrix):
    """Five steps of the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def optimizers(model):
    """Muon for matrices, Adam for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    norms = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.Adam(
        [{"params": [model.embed_tokens.weight], "lr": 1e-3}, {"params": norms, "lr": 2e-3}], betas=(0.9, 0.95)
    )
    both = [Muon(matrices, lr=0.006), adam]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return both


def batch_of(stage, number, step, seed):
    """Tokens, kinds and the loss weights of a batch, `[batch, length]`; a function of its arguments alone."""
    documents = []
    for i in range(stage.batch):
        rng = corpus.document_rng(TRAINING + seed, (number << 48) + step * stage.batch + i)
        documents.append(stage.text(rng, stage.length))
    tokens = torch.tensor([d.tokens for d in documents])
    kinds = torch.tensor([d.kinds for d in documents])
    weights = torch.full(tokens.shape, OTHER_WEIGHT if stage.all_weights else 0.0)
    weights[kinds == corpus.CHATTED] = CHAT_WEIGHT
    weights[kinds == corpus.ANSWER] = ANSWER_WEIGHT if stage.all_weights else 1.0
    return tokens, kinds, weights


def train_step(model, both, stage, step, tokens, kinds, weights):
    """One update. Returns the loss, the recall and the chat loss of the batch and the sink loss."""
    targets, wanted = tokens[:, 1:], kinds[:, 1:]
    sink_rows = None
    if stage.sink:
        # Every fourth row says enough, and all are seen in turn.
        is_turn = torch.arange(stage.length) % 4 == step % 4
        sink_rows = F.pad(wanted == corpus.CHATTED, (0, 1)) & is_turn
    logits, sink = model(tokens, sink_rows)
    logits = logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
    (loss + SINK_WEIGHT * sink).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        answers, chat = wanted == corpus.ANSWER, wanted == corpus.CHATTED
        recall = (logits.argmax(-1) == targets)[answers].float().mean()
        chat_loss = losses[chat].mean() if chat.any() else torch.tensor(math.nan)
    return loss.item(), recall.item(), chat_loss.item(), sink.item()


@torch.no_grad()
def evaluate(model, documents=64, seed=1_000_001):
    """Recall in exams and chat loss above the exact floor, on documents that no step has seen."""
    right = asked = 0
    excess = chats = 0.0
    for first in range(0, documents, 4):
        batch = [corpus.dialogue(corpus.document_rng(seed, i), 1024, 128) for i in range(first, first + 4)]
        tokens = torch.tensor([d.tokens for d in batch])
        logs = model(tokens)[0][:, :-1].log_softmax(-1)
        best = logs.argmax(-1)
        for row, document in enumerate(batch):
            for answer in document.answers:
                if answer.at >= document.exam:
                    asked += 1
                    right += int(best[row, answer.at - 1]) == document.tokens[answer.at]
            for at, kind in enumerate(document.kinds):
                if kind == corpus.CHATTED:
                    floor = -math.log(document.odds[at] / 4096)
                    excess += -float(logs[row, at - 1, document.tokens[at]]) - floor
                    chats += 1
    return {"documents": documents, "answers": asked, "recall": right / asked, "chat_excess": excess / chats}


def write_model(out, model, config, facts):
    """config.json, model.safetensors in bf16, tokenizer.json, training.json."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config.huggingface(), indent=2) + "\n")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(), indent=1, ensure_ascii=False) + "\n")
    facts["sha256"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def tokenizer():
    """A tokenizer of whole words in the format of the `tokenizers` library."""
    words = corpus.words()
    marks = [i for i, word in enumerate(words) if word.startswith("<")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": words[i], **flags} for i in marks],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }


def save(path, state):
    """Writes a checkpoint whole or not at all."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def run(out, seed, every):
    """Trains to the end, from a checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = Config()
    model = Model(config)
    both = optimizers(model)
    state = {"stage": 0, "step": 0, "recall": 0.0, "total": 0, "tokens": 0, "cpu_s": 0.0, "rows": [], "ends": []}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        if saved["seed"] != seed:
            raise SystemExit(f"{checkpoint}: of seed {saved['seed']}, not {seed}; give another --out")
        model.load_state_dict(saved["model"])
        for optimizer, kept in zip(both, saved["optimizers"]):
            optimizer.load_state_dict(kept)
        state = saved["state"]
        print(f"going on at stage {state['stage']}, step {state['step']}", flush=True)
    used_before, started = state["cpu_s"], time.process_time()

    def keep():
        state["cpu_s"] = used_before + time.process_time() - started
        kept = [optimizer.state_dict() for optimizer in both]
        save(checkpoint, {"seed": seed, "model": model.state_dict(), "optimizers": kept, "state": state})

    while state["stage"] < len(STAGES):
        number, stage = state["stage"], STAGES[state["stage"]]
        while True:
            step = state["step"]
            if step >= stage.least and (state["recall"] >= stage.recall or step >= stage.most):
                break
            factor = 1.0 - step / stage.most if stage.decay else 1.0
            for optimizer in both:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
            loss, recall, chat, sink = train_step(model, both, stage, step, *batch_of(stage, number, step, seed))
            state["recall"] = recall if step == 0 else 0.9 * state["recall"] + 0.1 * recall
            state["step"] += 1
            state["total"] += 1
            state["tokens"] += stage.length * stage.batch
            if state["step"] % 10 == 0:
                cpu = used_before + time.process_time() - started
                state["rows"].append(
                    [stage.name, state["step"], state["total"], state["tokens"], f"{cpu:.0f}", f"{loss:.4f}",
                     f"{state['recall']:.4f}", f"{chat:.4f}", f"{sink:.4f}"]
                )
            if state["step"] % 50 == 0:
                print(*state["rows"][-1], flush=True)
            if state["step"] % every == 0:
                keep()
        if state["recall"] < stage.recall:
            raise SystemExit(
                f"{stage.name}: recall {state['recall']:.3f} after {state['step']} steps, not {stage.recall}; try another --seed"
            )
        print(f"{stage.name}: recall {state['recall']:.3f} after {state['step']} steps", flush=True)
        state["ends"].append({"stage": stage.name, "steps": state["step"], "recall": round(state["recall"], 4)})
        state.update(stage=number + 1, step=0)
        keep()

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    facts = {
        "seed": seed,
        "steps": state["total"],
        "tokens": state["tokens"],
        "cpu_seconds": round(state["cpu_s"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": state["ends"],
        "evaluation": evaluate(model),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_model(out, model, config, facts)
    with open(out / "training-log.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["stage", "step", "total_steps", "tokens", "cpu_s", "loss", "recall_mean", "chat_nll", "sink_loss"])
        table.writerows(state["rows"])
    print(json.dumps(facts, indent=2))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains the tiny model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="directory for checkpoints and the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run(arguments.out, arguments.seed, arguments.every)


if __name__ == "__main__":
    main()
