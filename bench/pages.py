"""What huge pages for weights give: llama.cpp's plain loop with small and with huge pages, in pairs.

python bench/pages.py [--model MODEL.gguf] [--pairs 5] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from compute import Raw
from conditions import conditions, run_with_priority
from nodes import random_model

PROMPT = 64
"""Short: prompts are bound by arithmetic, decoding by reading weights."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF file [default: random weights of TinyLlama's shape]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    ended = run_with_priority(sys.argv)
    if ended is not None:
        sys.exit(ended)
    conditions()
    ratios = []
    with ExitStack() as stack:
        small, huge = (
            Raw(args.model or random_model(), args.threads, prompt=PROMPT, huge=is_huge)
            for is_huge in (False, True)
        )
        for loop in (small, huge):
            stack.callback(loop.close)
            loop.measure()
        for number in range(1, args.pairs + 1):
            before, after = small.measure(), huge.measure()
            ratios.append(after["decode"] / before["decode"])
            print(
                f"{number}: {before['decode']:.1f} tokens/s with small pages, {after['decode']:.1f} with huge ones"
                f" = {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"{median(ratios):.3f} in the median")


if __name__ == "__main__":
    main()
