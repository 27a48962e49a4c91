"""The demo model's word list: byte-level BPE, trained on the corpus, readable by llama.cpp as a GPT-2 tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from demo_corpus import Piece, conversations
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)


def train_tokenizer(path: Path, vocab_count: int, seed: int, sample_count: int) -> None:
    """Train on sample_count conversations and write the tokenizer as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # No merge may contain a digit, so that a number is always read digit by digit.
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_count,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for pieces in islice(conversations(seed), sample_count):
            text = "".join(piece.text for piece in pieces)
            for special in SPECIALS:
                text = text.replace(special, "\n")
            yield text

    tokenizer.train_from_iterator(texts(), trainer)
    # llama.cpp splits with GPT-2's expression alone; the result is the same because no merge holds a digit.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer written by train_tokenizer."""
    return Tokenizer.from_file(str(path))


def vocabulary(path: Path) -> tuple[list[str], list[str]]:
    """Tokens in id order, and merges as GGUF wants them ("left right")."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=lambda token: int(model["vocab"][token]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges


def encode(tokenizer: Tokenizer, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each one whether it is learned."""
    ids: list[int] = []
    targets: list[bool] = []
    for piece in pieces:
        encoded = tokenizer.encode(piece.text).ids
        ids += encoded
        targets += [piece.is_target] * len(encoded)
    return ids, targets
