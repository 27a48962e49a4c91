"""Train the demo model from zero and write it as GGUF: tokenizer, train, export, check."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHAPE = {"vocab_count": 2048}
CHECK_TEXT = (
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\nThe sky is blue because"
)
# F32 weights on both sides leave only the order of additions; logits reach 30.
LOGIT_TOLERANCE = 0.02


def rows(
    tokenizer_path: Path, seed: int, row_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Endless rows of row_size + 1 tokens with their target mask; every row begins with a new conversation."""
    from demo_corpus import conversations
    from demo_tokenizer import encode, load_tokenizer

    tokenizer, source = load_tokenizer(tokenizer_path), conversations(seed)
    while True:
        ids: list[int] = []
        targets: list[bool] = []
        while len(ids) <= row_size:
            more_ids, more_targets = encode(tokenizer, next(source))
            ids += more_ids
            targets += more_targets
        yield np.array(ids[: row_size + 1]), np.array(targets[: row_size + 1])


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: short warm-up, then a cosine down to one percent."""
    warm = min(1.0, (step + 1) / 60)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def row_size_at(progress: float) -> int:
    """Short rows first because they are fast; the whole context is learned at the end."""
    return 256 if progress < 0.5 else 512 if progress < 0.85 else 1024


def train(options: argparse.Namespace) -> None:
    """Train for a number of steps, saving a checkpoint often enough to lose little."""
    import torch
    from demo_model_net import DemoNet, NetShape
    from torch.nn import functional

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = DemoNet(NetShape(**SHAPE))
    matrices = [w for name, w in net.named_parameters() if w.dim() == 2 and name != "token_embd.weight"]
    others = [w for name, w in net.named_parameters() if w.dim() != 2 or name == "token_embd.weight"]
    optimisers = (
        torch.optim.Muon(matrices, lr=options.rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    first = 0
    checkpoint = options.work / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        saved = torch.load(checkpoint)
        net.load_state_dict(saved["net"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        first = saved["step"]
    begin, seen, mean_loss = time.monotonic(), 0, 0.0
    tokenizer_path = options.work / "tokenizer.json"
    sources = {size: rows(tokenizer_path, options.seed + size + first, size) for size in (256, 512, 1024)}
    for step in range(first, options.steps):
        row_size = row_size_at(step / options.steps)
        batch = [next(sources[row_size]) for _ in range(options.tokens // row_size)]
        ids = torch.from_numpy(np.stack([row for row, _ in batch]))
        mask = torch.from_numpy(np.stack([targets for _, targets in batch]))[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = net.logits(net.hidden(ids[:, :-1])[mask])
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = options.rate * rate(step, options.steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += ids.numel()
        mean_loss = loss.item() if step == first else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 40 == 0 or step + 1 == options.steps:
            speed = seen / (time.monotonic() - begin)
            print(f"step {step} loss {mean_loss:.3f} {speed:.0f} tokens/s", flush=True)
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            state = [optimiser.state_dict() for optimiser in optimisers]
            torch.save({"net": net.state_dict(), "optimisers": state, "step": step + 1}, checkpoint)


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint as GGUF, an F32 twin, and the network's own logits for the check."""
    import torch
    from demo_model_gguf import write_demo_model
    from demo_model_net import DemoNet, NetShape
    from demo_tokenizer import load_tokenizer

    shape = NetShape(**SHAPE)
    net = DemoNet(shape)
    net.load_state_dict(torch.load(options.work / "checkpoint.pt")["net"])
    weights = {name: values.detach().numpy() for name, values in net.named_parameters()}
    for path, kind in ((options.out, options.kind), (options.work / "check-f32.gguf", "f32")):
        write_demo_model(
            path,
            weights,
            options.work / "tokenizer.json",
            head_count=shape.head_count,
            kv_head_count=shape.kv_head_count,
            context_count=shape.context_count,
            rope_base=shape.rope_base,
            norm_epsilon=shape.norm_epsilon,
            kind=kind,
        )
    ids = load_tokenizer(options.work / "tokenizer.json").encode(CHECK_TEXT).ids
    with torch.no_grad():
        logits = net(torch.tensor([ids]))[0].numpy()
    np.savez(options.work / "check.npz", ids=np.array(ids), logits=logits)
    print(
        f"{options.out}: {sum(w.size for w in weights.values())} parameters, {options.out.stat().st_size} bytes"
    )


def check(options: argparse.Namespace) -> None:
    """Compare tokens and logits of llama.cpp with those that export wrote; needs llama_cpp, not torch."""
    from llama_cpp import Llama

    saved = np.load(options.work / "check.npz")
    model = Llama(
        str(options.work / "check-f32.gguf"),
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
    )
    ids = model.tokenize(CHECK_TEXT.encode(), add_bos=False, special=True)
    assert ids == saved["ids"].tolist(), "llama.cpp cuts the text into other tokens"
    model.eval(ids)
    difference = float(np.abs(np.array(model.scores[: len(ids)]) - saved["logits"]).max())
    print(f"largest logit difference {difference:.5f} (allowed {LOGIT_TOLERANCE}) over {len(ids)} tokens")
    assert difference <= LOGIT_TOLERANCE, "the network and llama.cpp disagree"


def tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer on a sample of the corpus."""
    from demo_tokenizer import train_tokenizer

    train_tokenizer(options.work / "tokenizer.json", SHAPE["vocab_count"], options.seed, sample_count=20000)


def main() -> None:
    """Run the named steps in order."""
    steps = {"tokenizer": tokenizer, "train": train, "export": export, "check": check}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("actions", nargs="+", choices=steps)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the tokenizer")
    parser.add_argument("--out", type=Path, default=Path("models/p2pnode-demo.gguf"))
    parser.add_argument("--kind", default="q8_0", choices=("q8_0", "f16", "f32"))
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in one step")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for action in options.actions:
        steps[action](options)


if __name__ == "__main__":
    main()
