"""Ask the demo model on this machine alone: print its greedy answers, or renew the golden answers of its test."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "p2pnode-demo.gguf"
GOLDEN = ROOT / "tests" / "tools" / "golden" / "demo_answers.json"
PROMPTS = (
    "What is p2pnode?",
    "What is a mesh?",
    "Why is the sky blue?",
    "Tell me a story about three computers.",
    "Tell me a story about a robot.",
    "Write a haiku about the sea.",
    "What is 7 plus 5?",
    "What is the capital of Japan?",
    "Count to 10.",
    "How does p2pnode work?",
)


def answer(model: object, prompt: str, answer_tokens_max: int = 400) -> tuple[str, str, int]:
    """Greedy answer, why it ended, and how many tokens it has."""
    reply = model.create_chat_completion(  # type: ignore[attr-defined]
        [{"role": "user", "content": prompt}], temperature=0.0, max_tokens=answer_tokens_max
    )
    choice = reply["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], reply["usage"]["completion_tokens"]


def main() -> None:
    """Answer each prompt in a chat of its own."""
    from llama_cpp import Llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--renew-golden", action="store_true")
    options = parser.parse_args()
    model = Llama(
        str(options.model),
        n_ctx=1024,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )
    answers: dict[str, str] = {}
    for prompt in options.prompts:
        begin = time.perf_counter()
        text, reason, count = answer(model, prompt)
        answers[prompt] = text
        speed = count / (time.perf_counter() - begin)
        print(f"### {prompt}\n\n{text}\n\n({count} tokens, {reason}, {speed:.0f} tokens/s)\n")
    if options.renew_golden:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
