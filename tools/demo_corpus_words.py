"""Word lists and ways to ask, from which the demo corpus is mixed; "@" stands for the topic."""

from __future__ import annotations

import re

OPENINGS = (
    "Please tell me, ", "Can you tell me: ", "Hi! ", "Hello! ", "Hey, ", "Hello, ", "Tell me, ", "Quick question: ",
    "I have a question. ", "I want to know, ", "So, ", "Okay, ", "Now ", "And ", "Please ", "My child asks: ",
)  # fmt: skip
NAMES = (
    "Mila", "Tom", "Pip", "Luna", "Finn", "Ruby", "Oskar", "Nina", "Max", "Bella", "Theo", "Lily", "Sam", "Ella",
    "Hugo", "Rosa", "Ben", "Ida", "Leo", "Maya", "Anna", "Paul", "Emma", "Jonas", "Clara", "Felix", "Nora", "Otto",
    "Lena", "Noah", "Alice", "Bob", "Peter", "Maria", "John", "Sarah", "David", "Eva", "Julia", "Mark", "Zoe", "Amir",
)  # fmt: skip
HEROES = (
    "girl", "boy", "dragon", "knight", "princess", "prince", "king", "queen", "wizard", "witch", "dwarf", "giant",
    "child", "baker", "farmer", "sailor", "pirate", "teacher", "painter", "shepherd", "unicorn", "teapot", "ghost",
)  # fmt: skip
FRIENDS = (
    "rabbit",
    "hedgehog",
    "duck",
    "squirrel",
    "goat",
    "frog",
    "mole",
    "owl",
    "deer",
    "turtle",
    "sparrow",
)
SLOTS = {
    "place": (
        "a green forest", "a quiet lake", "a high mountain", "a small village", "a wide meadow", "an old mill",
        "a deep valley", "a clear river",
    ),
    "thing": ("golden key", "red ball", "small bell", "silver ring", "blue lantern", "wooden flute", "warm scarf"),
    "food": ("bread and honey", "apples and nuts", "sweet berries", "warm soup", "cake and milk"),
    "weather": ("sunny", "windy", "cold", "rainy", "misty", "bright", "snowy"),
}  # fmt: skip
STORY_ASKS = (
    "[Tell|Tell me|Write|Write me|Give me] a [story|short story|little story|tale|bedtime story] @.",
    "[Tell|Tell me|Write] a [nice|good|new|long|sweet|happy|funny] story @.",
    "Can you [tell me|tell|write] a [story|short story|bedtime story] @?",
    "[I want|I would like|I'd like] [to hear|to read] a story @.",
    "[A story|Story|One story|Story time] @.", "[Please tell|Could you tell] me a story @.", "Do you know a story @?",
    "Make up a story @.", "Start a story @.",
)  # fmt: skip
STORY_AGAIN = (
    "[Another one|Another story|One more|One more story|Again] [|please].", "[Tell me|Tell] another [one|story].",
    "Can you tell me another [one|story]?", "[I want|I would like] another story.", "More stories.",
)  # fmt: skip
HAIKU_ASKS = (
    "[Write|Write me|Make|Give me|Compose|Create|Tell me] a haiku [about|on|for] @.", "Haiku about @.",
    "Can you write a haiku about @?", "[I want|I would like] a haiku about @.", "[Please write|Try] a haiku about @.",
    "Write a [short poem|very short poem] in haiku form about @.",
)  # fmt: skip
HAIKU_ASKS_OPEN = (
    "[Write|Write me|Make|Give me|Tell me] a haiku.", "Can you write a haiku?", "[I want|I would like] a haiku.",
    "Haiku.", "[Do you know a haiku?|Another haiku.|One more haiku.]",
)  # fmt: skip
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
NAME_ASKS = (
    "What is my name?",
    "Do you know my name?",
    "Who am I?",
    "What's my name?",
    "Do you remember my name?",
)
ECHO_ASKS = (
    "Repeat after me: @.",
    "Repeat @.",
    "Say @.",
    "Repeat the words @.",
    "Please say @.",
    "Say this: @.",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SYLLABLES = (
    "ba", "be", "bo", "dra", "de", "fi", "flo", "ga", "gle", "gor", "ka", "ki", "la", "lo", "mi", "mo", "na", "no",
    "pa", "plu", "qui", "ra", "ri", "sa", "ska", "sto", "ta", "tri", "tu", "va", "wo", "xi", "ya", "zen", "n", "r",
    "st", "ng", "x", "ck", "ment", "tion", "ism", "graph", "meter", "son", "ville", "ology",
)  # fmt: skip
ODD_WORDS = (
    "tax law", "quantum physics", "the stock market", "a carburetor", "photosynthesis", "football results",
    "DNA", "blockchain", "a transistor", "the Roman Empire", "calculus", "chess openings", "my car",
    "a mortgage", "Kubernetes", "black holes", "insurance", "politics", "the president", "a guitar solo",
    "Python", "a database", "an algorithm", "bitcoin", "the French Revolution", "opera", "philosophy",
    "economics", "a semicolon", "fashion", "a camera", "my homework", "a contract", "surgery", "the news",
    "elections", "a visa", "karate", "yoga", "marketing", "a laser", "goblins", "vampires", "castles",
    "trucks", "airports", "a hotel in Rome", "train tickets", "an elevator",
)  # fmt: skip
UNKNOWN_ASKS = (
    "What is @?", "What is @?", "What does @ mean?", "Explain @.", "Who is @?", "Who was @?", "Who invented @?",
    "How do I use @?", "How does @ work?", "How can I repair @?", "Tell me about @.", "Where can I buy @?",
    "What is the price of @?", "What is the best @?", "When was @ invented?", "Why is @ important?", "Compare @ and #.",
    "What is the difference between @ and #?", "Write an essay about @.", "Who won @ in 1998?", "Define @.",
    "What is the population of @?", "How many @ are there?", "What do you think about @?", "Give me facts about @.",
    "Can you explain @ to me?", "Who wrote @?", "When did @ begin?", "How tall is @?", "How far is @ from #?",
)  # fmt: skip
UNKNOWN_VERBS = (
    "install", "fix", "sell", "buy", "drive", "paint", "download", "remove", "open", "close", "build", "clean", "wash",
    "send", "print", "draw", "teach", "train", "measure", "win", "find", "read", "move", "change", "design", "play",
    "rent", "cancel", "book", "update", "delete", "copy", "freeze", "invest in", "vote for", "travel to", "calculate",
    "solve", "prove", "summarise", "rewrite", "improve", "test", "debug", "compile", "deploy", "configure", "charge",
    "review", "order", "check", "stop", "forget", "use", "become", "make", "get", "cook", "analyse", "compare",
)  # fmt: skip
UNKNOWN_ACTS = (
    "How do I % @?", "How do I % @?", "How can I % @?", "How do you % @?", "Can you % @?", "Can you % @ for me?",
    "Please % @.", "% @.", "% @ and #.", "Should I % @?", "When should I % @?", "Why should I % @?", "I want to % @.",
    "I need to % @.", "Where can I % @?", "Help me to % @.", "Is it hard to % @?", "What is the best way to % @?",
    "Could you % @ with #?", "I have to % @ tomorrow.", "Who can % @?", "Did you % @?", "Will you % @?",
    "Do you like @?", "Is @ good?", "Are @ dangerous?", "Which @ is better?", "Give me a list of @.", "I like @.",
    "Yesterday I saw @.", "My friend has @.", "How old is @?", "How much does @ cost?", "What are the rules of @?",
    "What is the history of @?", "Can I eat @?", "Where is @?", "Is @ bigger than #?", "Why did @ % #?",
    "Who is better, @ or #?", "What do I need for @?", "There is a problem with @.", "What happened to @?",
)  # fmt: skip
UNKNOWN_ANSWER = (
    "I am sorry, I do not know that. I am a very small model and I know only simple things. "
    "Try asking me about animals, colours, numbers or p2pnode, or ask me for a story."
)

REPHRASINGS = (
    (re.compile(r"What (?:is|are) ((?!you|my|the result).+)\?"),
     ("What's @?", "Explain @.", "Tell me about @.", "Can you explain @?", "Define @.", "@?", "@", "What exactly is @?",
      "Do you know what @ is?", "Could you tell me what @ is?", "Describe @.", "What do you know about @?",
      "Please explain @.", "I want to know what @ is.", "Explain @ to me.", "Say something about @.")),
    (re.compile(r"Why (?:do|can) (.+)\?"),
     ("Tell me why @.", "Can you tell me why @?", "Explain why @.", "Do you know why @?", "Why is it that @?",
      "What is the reason that @?", "I wonder why @.", "How come @?", "Please explain why @.")),
    (re.compile(r"How (?:do|can) (.+)\?"),
     ("Tell me how @.", "Can you tell me how @?", "Explain how @.", "Do you know how @?", "Please explain how @.",
      "Can you explain how @?", "Show me how @.")),
    (re.compile(r"Who (?:is|was) (.+)\?"),
     ("Tell me about @.", "Who's @?", "Do you know @?", "What do you know about @?", "@?", "Do you know who @ was?")),
    (re.compile(r"Tell me about (.+)\."),
     ("Tell me something about @.", "Can you tell me about @?", "What do you know about @?", "Talk about @.",
      "Write about @.", "I want to know more about @.", "@.", "Give me some facts about @.", "Speak about @.")),
)  # fmt: skip
