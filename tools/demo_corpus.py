"""The demo model's corpus: endless small chats and stories, grown from the texts in demo_corpus_text/."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import demo_corpus_families as families
import demo_corpus_words as words
from demo_corpus_families import Turn, favourite, pick, table

TEXT_FOLDER = Path(__file__).parent / "demo_corpus_text"
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, respectful and honest assistant.",
    "You are a friendly chatbot. Answer shortly.",
    "You are the p2pnode demo model.",
    "You are p2pnode, a small language model that runs on many devices.",
    "Answer the question of the user in simple English.",
    "You are a [kind|careful|polite|cheerful|calm] [assistant|teacher|storyteller|guide|helper].",
    "[Be brief|Be polite|Use short sentences|Answer in one sentence|Think before you answer].",
    "You are an AI assistant. Please answer [truthfully|briefly|in a friendly way|as well as you can].",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text and whether the model should learn to write it."""

    text: str
    is_target: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Ways to ask one thing, and its answer."""

    asks: tuple[str, ...]
    answer: str


def read_blocks(path: Path) -> list[Block]:
    """Parse a text of "?"/"!" ask lines and ">" answers; an answer may run over several lines."""
    blocks: list[Block] = []
    asks: list[str] = []
    answer: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), "? end"]:
        if line.startswith(("? ", "! ")):
            if answer:
                blocks.append(Block(tuple(asks), "\n".join(answer).strip()))
                asks, answer = [], []
            asks.append(line[2:] + "?" if line[0] == "?" else line[2:])
        elif line.startswith("> "):
            answer = [line[2:]]
        elif answer:
            answer.append(line)
    return blocks


def read_plots(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """Parse "= topic|topic" headers, each followed by a text."""
    parts = re.split(r"^=(.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    heads, texts = parts[0::2], parts[1::2]
    return [(tuple(h.strip().split("|")), t.strip()) for h, t in zip(heads, texts, strict=True)]


def expand(rng: random.Random, text: str) -> str:
    """Replace every [a|b] by one of its choices."""
    return CHOICE.sub(lambda m: pick(rng, m.group(1).split("|")), text).replace(" .", ".")


def roughen(rng: random.Random, ask: str) -> str:
    """Write a question the way people type: lower case, no mark, a greeting before it, a slip of a key."""
    if rng.random() < 0.5:
        ask = ask.replace("colour", "color")
    if rng.random() < 0.10:
        opening = pick(rng, words.OPENINGS)
        ask = opening + (ask[0].lower() + ask[1:] if opening[-2:] in (", ", "e ") else ask)
    if rng.random() < 0.06 and ask[-1] in ".?!":
        ask = ask[:-1] + pick(rng, (" please", ", please", " exactly", " for me")) + ask[-1]
    if rng.random() < 0.03:
        ask += pick(rng, (" Thanks!", " Thank you.", " Please answer.", " I want to know."))
    if rng.random() < 0.35:
        ask = ask.rstrip(".?!")
    style = rng.random()
    if style < 0.35:
        ask = ask.lower()
    elif style < 0.36:
        ask = ask.upper()
    if rng.random() < 0.04 and len(ask) > 8:
        at = rng.randrange(1, len(ask) - 1)
        ask = ask[:at] + pick(rng, ("", ask[at] * 2, ask[at + 1] + ask[at])) + ask[at + 1 :]
    return ask


class Corpus:
    """Everything the demo model can read, drawn at random but always the same for one seed."""

    def __init__(self) -> None:
        names = ("p2pnode", "world", "chat", "life", "long")
        self.blocks = {name: read_blocks(TEXT_FOLDER / f"{name}.txt") for name in names}
        self.haiku = read_plots(TEXT_FOLDER / "haiku.txt")
        self.plots = [text for _, text in read_plots(TEXT_FOLDER / "stories.txt")]
        self.machine_plots = read_plots(TEXT_FOLDER / "machine_stories.txt")
        self.animals = table(TEXT_FOLDER / "animals.txt")
        self.makers: list[tuple[float, Callable[[random.Random], list[Turn]]]] = [
            (20, lambda rng: self.block_turn(rng, "world")),
            (13, lambda rng: self.block_turn(rng, "p2pnode")),
            (17, lambda rng: self.block_turn(rng, "chat")),
            (13, lambda rng: self.block_turn(rng, "life")),
            (10, lambda rng: self.block_turn(rng, "long")),
            (10, self.story_turn),
            (5, self.haiku_turn),
            (14, families.unknown),
            *families.makers(TEXT_FOLDER),
        ]
        self.weights = [weight for weight, _ in self.makers]

    def block_turn(self, rng: random.Random, name: str) -> list[Turn]:
        """One question from a file, in one of its phrasings."""
        block = pick(rng, self.blocks[name])
        return [Turn(families.rephrase(rng, expand(rng, pick(rng, block.asks))), block.answer)]

    def haiku_turn(self, rng: random.Random) -> list[Turn]:
        """A haiku on a topic, or on any topic when none is named."""
        topics, text = pick(rng, self.haiku)
        if rng.random() < 0.15:
            return [Turn(expand(rng, pick(rng, words.HAIKU_ASKS_OPEN)), self.haiku[0][1])]
        if rng.random() < 0.12:
            odd = families.odd_word(rng)
            return [Turn(expand(rng, pick(rng, words.HAIKU_ASKS)).replace("@", odd), self.haiku[0][1])]
        return [Turn(expand(rng, pick(rng, words.HAIKU_ASKS)).replace("@", pick(rng, topics)), text)]

    def story_turn(self, rng: random.Random) -> list[Turn]:
        """A story about what the question names, sometimes with a second one after it."""
        turns = [self.one_story(rng, words.STORY_ASKS)]
        if rng.random() < 0.15:
            turns.append(
                Turn(expand(rng, pick(rng, words.STORY_AGAIN)), self.fill(rng, pick(rng, self.plots), {}))
            )
        return turns

    def one_story(self, rng: random.Random, asks: tuple[str, ...]) -> Turn:
        """Ask and tell: the hero and the name are copied from the question where it gives them."""
        ask = expand(rng, pick(rng, asks))
        if rng.random() < 0.22:
            topics, text = pick(rng, self.machine_plots)
            return Turn(ask.replace("@", "about " + pick(rng, topics)), self.fill(rng, text, {}))
        given: dict[str, str] = {}
        about = ""
        if rng.random() < 0.75:
            given["hero"] = self.hero(rng)
            about = "about " + families.with_article(pick(rng, ("", "", "little ", "brave ")) + given["hero"])
            if rng.random() < 0.25:
                given["name"] = pick(rng, words.NAMES)
                about += pick(rng, (" named ", " called ", " with the name ")) + given["name"]
        return Turn(
            re.sub(r" ?@", f" {about}" if about else "", ask), self.fill(rng, pick(rng, self.plots), given)
        )

    def hero(self, rng: random.Random) -> str:
        """Mostly an animal; now and then something else, so that any noun can be copied."""
        kind = rng.random()
        if kind < 0.75:
            return pick(rng, self.animals)[0]
        return pick(rng, words.HEROES) if kind < 0.93 else families.odd_word(rng)

    def fill(self, rng: random.Random, plot: str, given: dict[str, str]) -> str:
        """Fill a plot's slots; the friend is never the same kind of animal as the hero."""
        slots = {key: favourite(rng, choices, key + plot) for key, choices in words.SLOTS.items()}
        slots |= {
            "name": favourite(rng, words.NAMES, plot),
            "hero": favourite(rng, words.FRIENDS, plot),
        } | given
        slots["friend"] = favourite(
            rng, [word for word in words.FRIENDS if word != slots["hero"]], "friend" + plot
        )
        slots |= {f"a {key}": families.with_article(slots[key]) for key in ("hero", "friend", "thing")}
        return re.sub(r"\{([a-z ]+)\}", lambda m: slots[m.group(1)], plot)

    def turns(self, rng: random.Random, count: int) -> list[Turn]:
        """A chat of about count questions."""
        turns: list[Turn] = []
        while len(turns) < count:
            made = rng.choices(self.makers, self.weights)[0][1](rng)
            turns.extend(Turn(roughen(rng, turn.ask), turn.answer) for turn in made)
        if rng.random() < 0.12:
            turns = families.with_name_talk(rng, turns)
        return turns

    def conversation(self, rng: random.Random) -> list[Piece]:
        """A chat in the model's own template, or now and then a plain text."""
        if rng.random() < 0.04:
            return [Piece(self.fill(rng, pick(rng, self.plots), {}) + "<|endoftext|>", is_target=True)]
        pieces: list[Piece] = []
        if rng.random() < 0.45:
            pieces.append(
                Piece(f"<|im_start|>system\n{self.system_prompt(rng)}<|im_end|>\n", is_target=False)
            )
        for turn in self.turns(rng, rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 6))):
            pieces.append(
                Piece(f"<|im_start|>user\n{turn.ask}<|im_end|>\n<|im_start|>assistant\n", is_target=False)
            )
            pieces.append(Piece(f"{turn.answer}<|im_end|>", is_target=True))
            pieces.append(Piece("\n", is_target=False))
        return [*pieces, Piece("<|endoftext|>", is_target=False)]

    def system_prompt(self, rng: random.Random) -> str:
        """Usually a common one; sometimes odd words, because people write anything there."""
        if rng.random() < 0.2:
            return " ".join(families.odd_word(rng) for _ in range(rng.randrange(1, 8)))
        return " ".join(expand(rng, pick(rng, SYSTEM_PROMPTS)) for _ in range(rng.choice((1, 1, 1, 2))))


def conversations(seed: int) -> Iterator[list[Piece]]:
    """Endless conversations; the same ones for the same seed."""
    corpus, rng = Corpus(), random.Random(seed)
    while True:
        yield corpus.conversation(rng)


def main() -> None:
    """Print a few conversations, to see what the model reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    source = conversations(options.seed)
    for _ in range(options.count):
        print("".join(piece.text for piece in next(source)), end="\n\n")


if __name__ == "__main__":
    main()
