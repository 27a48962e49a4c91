"""Question families of the demo corpus that are made from tables and rules: sums, days, animals, names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import demo_corpus_words as words

T = TypeVar("T")
Maker = Callable[[random.Random], "list[Turn]"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    ask: str
    answer: str


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """One of the choices."""
    return choices[rng.randrange(len(choices))]


def favourite(rng: random.Random, choices: Sequence[T], key: str) -> T:
    """Mostly the same choice for the same key, so that the likeliest word is clear and greedy answers are stable."""
    return choices[crc32(key.encode()) % len(choices)] if rng.random() < 0.55 else pick(rng, choices)


def table(path: Path) -> list[list[str]]:
    """Rows of a "a | b | c" text, without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line and line[0] != "#"]


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return ("an " if noun[0].lower() in "aeiou" and not noun.startswith("uni") else "a ") + noun


def capitalise(text: str) -> str:
    """The text with a capital first letter and the rest untouched."""
    return text[0].upper() + text[1:]


def odd_word(rng: random.Random) -> str:
    """A word that the model cannot know: invented, or from a field it never read about."""
    if rng.random() < 0.4:
        return pick(rng, words.ODD_WORDS)
    word = "".join(pick(rng, words.SYLLABLES) for _ in range(rng.randrange(2, 5)))
    return word.capitalize() if rng.random() < 0.4 else pick(rng, ("", "", "a ", "the ")) + word


def rephrase(rng: random.Random, ask: str) -> str:
    """Now and then the same question in another common form."""
    if rng.random() < 0.35:
        for pattern, forms in words.REPHRASINGS:
            if found := pattern.fullmatch(ask):
                return capitalise(pick(rng, forms).replace("@", found.group(1)))
    return ask


def unknown(rng: random.Random) -> list[Turn]:
    """A question beyond the model, and the graceful answer."""
    if rng.random() < 0.05:
        return [Turn(" ".join(odd_word(rng) for _ in range(rng.randrange(1, 4))), words.UNKNOWN_ANSWER)]
    ask = pick(rng, words.UNKNOWN_ASKS if rng.random() < 0.35 else words.UNKNOWN_ACTS)
    ask = (
        ask.replace("%", pick(rng, words.UNKNOWN_VERBS))
        .replace("@", odd_word(rng))
        .replace("#", odd_word(rng))
    )
    return [Turn(capitalise(ask), words.UNKNOWN_ANSWER)]


def sums(rng: random.Random) -> list[Turn]:
    """Plus, minus and times with small numbers, as digits or words."""
    kind = pick(rng, ("plus", "plus", "minus", "times"))
    top = 10 if kind == "times" else 20
    a, b = rng.randrange(top + 1), rng.randrange(top + 1)
    if rng.random() < 0.4:
        a, b = a % 11, b % 11
    if kind == "minus":
        a, b = max(a, b), min(a, b)
    result = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    sign = {"plus": "+", "minus": "-", "times": pick(rng, ("*", "x"))}[kind]
    say = [str(a), str(b)]
    if a <= 12 and b <= 12 and rng.random() < 0.25:
        say = [words.NUMBER_WORDS[a], words.NUMBER_WORDS[b]]
    middle = pick(rng, (f" {kind} ", f" {kind} ", f" {sign} ", sign))
    question = middle.join(say)
    ask = pick(rng, ("What is @?", "How much is @?", "@?", "@ = ?", "@ =", "Calculate @.", "What is the result of @?",
                     "What's @?", "Compute @.", "Add it up: @."))  # fmt: skip
    return [Turn(ask.replace("@", question), f"{a} {kind} {b} is {result}.")]


def numbers(rng: random.Random) -> list[Turn]:
    """Counting, neighbours, larger and smaller, even and odd."""
    a, b = rng.randrange(1, 30), rng.randrange(1, 30)
    kind = pick(rng, (0, 0, 0, 0, 1, 1, 2, 3, 4, 5))
    if kind == 0:
        end = pick(rng, (3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 11, 12, 15, 20))
        said = words.NUMBER_WORDS[end] if end <= 12 and rng.random() < 0.2 else end
        ask = pick(rng, (f"Count to {said}.", f"Count from 1 to {said}.", f"Can you count to {said}?"))
        return [Turn(ask, ", ".join(str(n) for n in range(1, end + 1)) + ".")]
    if kind == 1:
        start = rng.randrange(3, 16)
        ask = pick(rng, (f"Count down from {start}.", f"Count backwards from {start}."))
        return [Turn(ask, ", ".join(str(n) for n in range(start, -1, -1)) + ".")]
    if kind == 2:
        ask = pick(
            rng, (f"What comes after {a}?", f"Which number comes after {a}?", f"What number follows {a}?")
        )
        return [Turn(ask, f"After {a} comes {a + 1}.")]
    if kind == 3:
        ask = pick(rng, (f"What comes before {a}?", f"Which number comes before {a}?"))
        return [Turn(ask, f"Before {a} comes {a - 1}.")]
    if kind == 4 and a != b:
        ask = pick(
            rng, (f"Which is bigger, {a} or {b}?", f"What is larger, {a} or {b}?", f"Is {a} bigger than {b}?")
        )
        return [Turn(ask, f"{max(a, b)} is bigger than {min(a, b)}.")]
    ask = pick(
        rng, (f"Is {a} even or odd?", f"Is {a} an even number?", f"Is {a} an odd number?", f"Is {a} even?")
    )
    return [Turn(ask, f"{a} is an {'odd' if a % 2 else 'even'} number.")]


def calendar(rng: random.Random) -> list[Turn]:
    """The day or month before or after another."""
    word, names = pick(rng, (("day", words.DAYS), ("month", words.MONTHS)))
    at = rng.randrange(len(names))
    side, step = pick(rng, (("after", 1), ("after", 1), ("before", -1)))
    other = names[(at + step) % len(names)]
    ask = pick(rng, (f"What {word} comes {side} {names[at]}?", f"Which {word} comes {side} {names[at]}?",
                     f"What comes {side} {names[at]}?", f"What is the {word} {side} {names[at]}?"))  # fmt: skip
    return [Turn(ask, f"The {word} {side} {names[at]} is {other}.")]


def spelling(rng: random.Random, known: list[str]) -> list[Turn]:
    """The letters of a word, one by one."""
    word = pick(rng, known)
    ask = pick(
        rng,
        ("How do you spell @?", "Spell @.", "Spell the word @.", "How is @ spelled?", "How do I spell @?"),
    )
    return [Turn(ask.replace("@", word), f"{capitalise(word)} is spelled {'-'.join(word.upper())}.")]


def animal(rng: random.Random, rows: list[list[str]]) -> list[Turn]:
    """One fact, or a short portrait, of an animal."""
    one, many, home, food, sound, young, colour, more = pick(rng, rows)
    an = with_article(one)
    habits = f"{capitalise(many)} live in {home}. They eat {food}."
    portrait = (
        f"{habits} The colour of {an} is {colour}, and its young is called {with_article(young)}. {more}"
    )
    voice = f"{capitalise(an)} {sound}."
    facts = (
        (f"Where do {many} live?|Where does {an} live?|Where can I find {many}?",
         f"{capitalise(many)} live in {home}."),
        (f"What do {many} eat?|What does {an} eat?|What is the food of {many}?", f"{capitalise(many)} eat {food}."),
        (f"What sound does {an} make?|What does {an} say?|What sound do {many} make?|How does {an} sound?", voice),
        (f"What is a young {one} called?|What is a baby {one} called?|What do you call a baby {one}?",
         f"A young {one} is called {with_article(young)}."),
        (f"What colour is {an}?|What colour are {many}?|Which colour does {an} have?",
         f"The colour of {an} is {colour}."),
        (f"What is {an}?|Tell me about {many}.|Tell me something about {many}.|Describe {an}.|What are {many}?"
         f"|Tell me about the {one}.|What do you know about {many}?|Give me facts about {many}.", portrait),
        (f"Tell me about {many}.|What is {an}?|{capitalise(many)}.", portrait),
    )  # fmt: skip
    asks, answer = pick(rng, facts)
    turns = [Turn(pick(rng, asks.split("|")), answer)]
    if answer == voice and rng.random() < 0.3:
        other = pick(rng, rows)
        an_other = with_article(other[0])
        ask = pick(rng, (f"And {an_other}?", f"What about {an_other}?"))
        turns.append(Turn(ask, f"{capitalise(an_other)} {other[4]}."))
    return turns


def colour(rng: random.Random, rows: list[list[str]]) -> list[Turn]:
    """The colour of a thing."""
    thing, name = pick(rng, rows)
    ask = pick(rng, (f"What colour is {thing}?", f"Which colour is {thing}?", f"What is the colour of {thing}?",
                     f"Which colour does {thing} have?", f"Tell me the colour of {thing}."))  # fmt: skip
    return [Turn(ask, f"{capitalise(thing)} is {name}.")]


def capital(rng: random.Random, rows: list[list[str]]) -> list[Turn]:
    """A country's capital, or the other way round, with a follow-up now and then."""
    country, city = pick(rng, rows)
    if rng.random() < 0.1:
        ask = pick(
            rng, ("Tell me about @.", "What is @?", "Where is @?", "What do you know about @?", "Describe @.")
        )
        more = f"The capital of {country} is {city}. That is all I know about {country}."
        return [Turn(ask.replace("@", country), more)]
    if rng.random() < 0.2:
        ask = pick(rng, (f"Where is {city}?", f"In which country is {city}?", f"What is {city}?"))
        return [Turn(ask, f"{city} is the capital of {country}.")]
    ask = pick(rng, ("What is the capital of @?", "What's the capital of @?", "Which city is the capital of @?",
                     "Tell me the capital of @.", "Name the capital of @.", "Capital of @?", "@ capital",
                     "What is the capital city of @?", "Do you know the capital of @?"))  # fmt: skip
    turns = [Turn(ask.replace("@", country), f"The capital of {country} is {city}.")]
    if rng.random() < 0.25:
        country, city = pick(rng, rows)
        turns.append(Turn(pick(rng, (f"And {country}?", f"And of {country}?", f"What about {country}?")),
                          f"The capital of {country} is {city}."))  # fmt: skip
    return turns


def opposite(rng: random.Random, rows: list[list[str]]) -> list[Turn]:
    """The opposite of a word."""
    word, other = pick(rng, rows)
    ask = pick(rng, ("What is the opposite of @?", "What's the opposite of @?", "Opposite of @?",
                     "Name the opposite of @.", "Tell me the opposite of @."))  # fmt: skip
    return [Turn(ask.replace("@", word), f"The opposite of {word} is {other}.")]


def with_name_talk(rng: random.Random, turns: list[Turn]) -> list[Turn]:
    """Add the user's name to a chat and ask for it later, or ask although it was never told."""
    ask = pick(rng, words.NAME_ASKS)
    if rng.random() < 0.3:
        return [*turns, Turn(roughly(rng, ask), "You have not told me your name yet. What is your name?")]
    name = pick(rng, words.NAMES)
    hello = pick(
        rng, ("My name is @.", "I am @.", "Hello, I am @.", "Hi, my name is @.", "Call me @.", "I'm @.")
    )
    first = Turn(hello.replace("@", name), f"Nice to meet you, {name}! How can I help you?")
    return [first, *turns[:3], Turn(roughly(rng, ask), f"Your name is {name}.")]


def roughly(rng: random.Random, ask: str) -> str:
    """The question, sometimes in lower case or without its mark."""
    ask = ask.rstrip("?") if rng.random() < 0.3 else ask
    return ask.lower() if rng.random() < 0.3 else ask


def echo(rng: random.Random) -> list[Turn]:
    """A word or a few to say again, which also teaches the model to look back for names."""
    said = " ".join(
        pick(
            rng,
            (odd_word(rng), pick(rng, words.NAMES), pick(rng, words.HEROES), pick(rng, words.SLOTS["thing"])),
        )
        for _ in range(rng.choice((1, 1, 2, 3)))
    )
    return [Turn(pick(rng, words.ECHO_ASKS).replace("@", said), f"{capitalise(said)}.")]


def makers(folder: Path) -> list[tuple[float, Maker]]:
    """Every family with its share of all questions."""
    animals, things = table(folder / "animals.txt"), table(folder / "things.txt")
    capitals, opposites = table(folder / "capitals.txt"), table(folder / "opposites.txt")
    known = [row[0] for row in animals if " " not in row[0]] + [row[0] for row in opposites]
    return [
        (18, sums),
        (4, echo),
        (16, numbers),
        (4, calendar),
        (2, lambda rng: spelling(rng, known)),
        (12, lambda rng: animal(rng, animals)),
        (3, lambda rng: colour(rng, things)),
        (7, lambda rng: capital(rng, capitals)),
        (2, lambda rng: opposite(rng, opposites)),
    ]
