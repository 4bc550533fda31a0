"""The corpus of the tiny model: seeded dialogues with facts, questions and chat.

The Rust crate `engine` has the same generator (`engine/src/quality/corpus.rs`). Both use 64-bit integers only, so a
seed gives the same documents in both; a test on each side holds the same hashes.
"""

from dataclasses import dataclass, field
from pathlib import Path

MASK = (1 << 64) - 1
VOCABULARY = Path(__file__).resolve().parent.parent / "engine" / "models" / "tiny" / "vocabulary.txt"

# Token ids: 16 marks, 64 names, 64 things, 112 words of chat.
BOS, START, END, SYSTEM, USER, MODEL, NOTE, ASK, OK, DOT, FILL = 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
NAMES, THINGS, CHAT, WORDS, VOCAB = 16, 80, 144, 112, 256

# Kinds of tokens, as targets of a prediction.
OTHER, CHATTED, ANSWER = 0, 1, 2

# A chat word has 8 successors with these odds (of 256), and an end before it with odds 1 : 15.
ODDS = (96, 64, 32, 24, 16, 12, 8, 4)
LANGUAGE = 0x6B76_6C61_6220_6368
WORDS_MAX = 40
SYSTEM_FACTS = 6
ASKED_OF_SYSTEM = 4


def mix(x):
    """The output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & MASK
    return x ^ (x >> 31)


class Rng:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        """The next 64 bits."""
        self.state = (self.state + 0x9E37_79B9_7F4A_7C15) & MASK
        return mix(self.state)

    def below(self, n):
        """A number below n (at most 2^32)."""
        return ((self.next() >> 32) * n) >> 32

    def shuffle(self, items):
        """Fisher and Yates, from the end."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


def document_rng(seed, index):
    """The generator of document `index` of the corpus `seed`."""
    return Rng(mix((seed * 0x9E37_79B9_7F4A_7C15 + index + 1) & MASK))


def language():
    """The 8 successors of every state: chat words 0..112, then the state before the first word."""
    rng = Rng(LANGUAGE)
    table = []
    for _ in range(WORDS + 1):
        words = list(range(WORDS))
        for i in range(8):
            j = i + rng.below(WORDS - i)
            words[i], words[j] = words[j], words[i]
        table.append(words[:8])
    return table


SUCCESSORS = language()


@dataclass
class Fact:
    """A planted pair."""

    name: int
    thing: int
    # Index of the token that says the thing.
    at: int


@dataclass
class Answer:
    """A question's answer: the token at `at` says what the fact at `fact_at` said."""

    at: int
    fact_at: int


@dataclass
class Document:
    """Tokens; per token its kind and, for chat, its probability in 4096ths; the answers."""

    tokens: list = field(default_factory=list)
    kinds: list = field(default_factory=list)
    odds: list = field(default_factory=list)
    answers: list = field(default_factory=list)
    exam: int = 0

    def say(self, token, kind=OTHER, odds=0):
        """Appends a token."""
        self.tokens.append(token)
        self.kinds.append(kind)
        self.odds.append(odds)

    def hash(self):
        """A number that depends on all of it (FNV-1a over 64-bit words)."""
        words = [len(self.tokens), self.exam]
        for token, kind, odds in zip(self.tokens, self.kinds, self.odds):
            words.append(token | kind << 16 | odds << 32)
        for answer in self.answers:
            words.append(answer.at | answer.fact_at << 32)
        value = 0xCBF2_9CE4_8422_2325
        for word in words:
            value = ((value ^ word) * 0x100_0000_01B3) & MASK
        return value


class Writer:
    """Writes one dialogue."""

    def __init__(self, rng, weights):
        self.rng = rng
        self.weights = weights
        self.document = Document()
        self.names = list(range(64))
        rng.shuffle(self.names)
        # Facts that were not asked for yet: of the system turn, of later turns.
        self.system = []
        self.facts = []

    def new_fact(self):
        """A fact about a name that no fact was about; the caller says it."""
        return Fact(NAMES + self.names.pop(), THINGS + self.rng.below(64), 0)

    def pair(self, fact):
        """Says name and thing."""
        self.document.say(fact.name)
        fact.at = len(self.document.tokens)
        self.document.say(fact.thing)

    def system_turn(self):
        """28 tokens: `<bos>`, then six facts."""
        say = self.document.say
        for token in (BOS, START, SYSTEM):
            say(token)
        for _ in range(SYSTEM_FACTS):
            fact = self.new_fact()
            say(NOTE)
            self.pair(fact)
            say(DOT)
            self.system.append(fact)
        say(END)

    def fact(self):
        """11 tokens: a fact and its acknowledgement."""
        say = self.document.say
        fact = self.new_fact()
        for token in (START, USER, NOTE):
            say(token)
        self.pair(fact)
        for token in (DOT, END, START, MODEL, OK, END):
            say(token)
        self.facts.append(fact)

    def ask(self, fact):
        """11 tokens: a question and its answer."""
        say = self.document.say
        for token in (START, USER, ASK, fact.name, END, START, MODEL, fact.name):
            say(token)
        self.document.answers.append(Answer(len(self.document.tokens), fact.at))
        say(fact.thing, ANSWER)
        say(DOT)
        say(END)

    def chat_part(self, role, words_max):
        """A turn of 1 to `words_max` chat words; only an end of its own accord counts as chat."""
        document, rng = self.document, self.rng
        document.say(START)
        document.say(role)
        state = WORDS
        for word in range(words_max):
            if word > 0:
                if rng.below(16) == 0:
                    document.say(END, CHATTED, 256)
                    return
            draw, rank = rng.below(256), 0
            while draw >= ODDS[rank]:
                draw -= ODDS[rank]
                rank += 1
            state = SUCCESSORS[state][rank]
            if word > 0:
                document.say(CHAT + state, CHATTED, 15 * ODDS[rank])
            else:
                document.say(CHAT + state)
        document.say(END)

    def chat(self, room):
        """Two chat turns in at most `room` tokens, at least 8."""
        before = len(self.document.tokens)
        self.chat_part(USER, min(WORDS_MAX, room - 7))
        used = len(self.document.tokens) - before
        self.chat_part(MODEL, min(WORDS_MAX, room - used - 3))

    def fill(self, length):
        """Says nothing up to `length`."""
        while len(self.document.tokens) < length:
            self.document.say(FILL)

    def body(self, length):
        """Turns of three kinds up to `length` tokens."""
        while (room := length - len(self.document.tokens)) >= 11:
            draw = self.rng.below(sum(self.weights))
            if draw < self.weights[0] and self.names:
                self.fact()
            elif self.weights[0] <= draw < self.weights[0] + self.weights[1] and self.ask_any():
                pass
            else:
                self.chat(room)
        self.fill(length)

    def ask_any(self):
        """Asks for a fact, if one may be asked for: two facts of the system turn stay for the exam."""
        system = max(0, len(self.system) - (SYSTEM_FACTS - ASKED_OF_SYSTEM))
        if system + len(self.facts) == 0:
            return False
        draw = self.rng.below(system + len(self.facts))
        if draw < system:
            self.ask(self.system.pop(self.rng.below(len(self.system))))
        else:
            self.ask(self.facts.pop(draw - system))
        return True

    def exam_turns(self, length):
        """Up to 8 questions, two of them about the system turn, and chat, `length` tokens in all."""
        end = len(self.document.tokens) + length
        self.document.exam = len(self.document.tokens)
        self.rng.shuffle(self.system)
        self.rng.shuffle(self.facts)
        asked = self.system[:2] + self.facts[:6]
        self.rng.shuffle(asked)
        while True:
            room = end - len(self.document.tokens)
            free = room - 11 * len(asked)
            if free >= 8 and (not asked or self.rng.below(16) < 5):
                self.chat(free)
            elif asked and room >= 11:
                self.ask(asked.pop())
            else:
                break
        self.fill(end)


# Turns: fact, question, chat.
PLAIN = (6, 3, 7)
DENSE = (8, 7, 1)


def dialogue(rng, body, exam, weights=PLAIN):
    """A dialogue of `body` tokens and an exam of `exam` (0: none)."""
    writer = Writer(rng, weights)
    writer.system_turn()
    writer.body(body)
    if exam:
        writer.exam_turns(exam)
    else:
        writer.document.exam = body
    return writer.document


def pairs(rng, length, count):
    """`count` pairs of a name and a thing, then questions about them up to `length` tokens."""
    document = Document()
    names = list(range(64))
    rng.shuffle(names)
    facts = [Fact(NAMES + names[i], THINGS + rng.below(64), 0) for i in range(count)]
    document.say(BOS)
    for fact in facts:
        document.say(fact.name)
        fact.at = len(document.tokens)
        document.say(fact.thing)
    document.exam = len(document.tokens)
    while len(document.tokens) + 2 <= length:
        fact = facts[rng.below(count)]
        document.say(fact.name)
        document.answers.append(Answer(len(document.tokens), fact.at))
        document.say(fact.thing, ANSWER)
    while len(document.tokens) < length:
        document.say(FILL)
    return document


def questions(rng, length):
    """The system turn, then questions about it again and again up to `length` tokens."""
    writer = Writer(rng, PLAIN)
    writer.system_turn()
    writer.document.exam = len(writer.document.tokens)
    while len(writer.document.tokens) + 11 <= length:
        writer.ask(writer.system[rng.below(SYSTEM_FACTS)])
    writer.fill(length)
    return writer.document


def words():
    """The vocabulary, by id."""
    return VOCABULARY.read_text(encoding="utf-8").split()


# The engine's test holds the same numbers: eight documents of each seed.
HASHES = {1: 0x026A_8088_0B23_18DB, 2: 0xBE4D_4CF1_AF28_D6F2, 3_000_000_019: 0x52BC_0697_DA76_4CAA}


def check():
    """The documents are those of the engine."""
    for seed, expected in HASHES.items():
        found = 0
        for index in range(8):
            found = mix(found ^ dialogue(document_rng(seed, index), 1024, 128).hash())
        if found != expected:
            raise SystemExit(f"corpus of seed {seed}: {found:#x}, not {expected:#x}")


if __name__ == "__main__":
    check()
    print("the corpus is the engine's")
