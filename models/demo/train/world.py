"""Questions over the fact tables: every question comes with a short answer and a full sentence."""

from dataclasses import dataclass, field
import zlib

import facts
from facts import article, capital_first


@dataclass
class Ask:
    """One question with its answers in several styles."""

    kind: str
    text: str
    short: object  # a string, or an integer
    full: str
    record: dict = field(default_factory=dict)  # the fact as a JSON object
    subject: str = ""  # what a follow-up question may exchange


@dataclass
class Relation:
    """A table together with its phrasings; templates use the columns by name."""

    kind: str
    rows: list
    short: str
    full: str
    phrasings: list
    record: tuple = ()
    follow_ups: tuple = ()
    number: bool = False

    def fill(self, row, template):
        text = template.format(**row)
        return capital_first(text)

    def ask(self, row, phrasing):
        short = row[self.short]
        record = {key: int(row[column]) if row[column].isdigit() else row[column]
                  for key, column in self.record}
        return Ask(self.kind, self.fill(row, phrasing), int(short) if self.number else short,
                   self.fill(row, self.full), record, row["a"])


def reserved(text):
    """True for the questions that are kept out of training (about one in thirty).

    The choice depends on the words alone, so that changed capitals or a missing question
    mark do not bring a reserved question back into the training text.
    """
    if text[-1:] not in "?." or text[:1].isdigit():
        return False
    words = "".join(c for c in text.lower() if c.isalnum() or c in " +-").split()
    return zlib.crc32(" ".join(words).encode()) % 30 == 7


def named(rows, *columns):
    """Rows as dictionaries with the given column names."""
    return [dict(zip(columns, row)) for row in rows]


def with_article(rows):
    """Add an indefinite article to column a as column 'an'."""
    for row in rows:
        row["an"] = article(row["a"])
    return rows


def country_relations():
    rows = named(facts.COUNTRIES, "a", "capital", "continent", "language")
    capital = Relation(
        "capital", rows, "capital", "the capital of {a} is {capital}.",
        ["What is the capital of {a}?", "What's the capital of {a}?",
         "Which city is the capital of {a}?", "Name the capital of {a}.",
         "Tell me the capital of {a}.", "What is the capital city of {a}?",
         "Do you know the capital of {a}?", "What is {a}'s capital?",
         "Give me the capital of {a}.", "I want to know the capital of {a}.",
         "Can you tell me the capital of {a}?", "What city is the capital of {a}?"],
        (("country", "a"), ("capital", "capital")),
        ("And of {a}?", "And the capital of {a}?", "And what about {a}?", "What about {a}?",
         "And {a}?", "And for {a}?"))
    back = Relation(
        "country", [dict(row, a=row["capital"], country=row["a"]) for row in rows], "country",
        "{a} is the capital of {country}.",
        ["Which country has the capital {a}?", "{a} is the capital of which country?",
         "What country is {a} the capital of?", "Of which country is {a} the capital?",
         "Name the country whose capital is {a}."],
        (("capital", "a"), ("country", "country")), ("And {a}?", "What about {a}?"))
    continent = Relation(
        "continent", rows, "continent", "{a} is in {continent}.",
        ["On which continent is {a}?", "Where is {a}?", "Which continent is {a} in?",
         "In which part of the world is {a}?", "What continent is {a} on?",
         "Tell me where {a} is."],
        (("country", "a"), ("continent", "continent")),
        ("And {a}?", "What about {a}?", "And where is {a}?"))
    language = Relation(
        "language", rows, "language", "people in {a} speak {language}.",
        ["Which language do people speak in {a}?", "What language is spoken in {a}?",
         "What do people speak in {a}?", "What is the language of {a}?",
         "Tell me the language of {a}."],
        (("country", "a"), ("language", "language")),
        ("And in {a}?", "What about {a}?", "And {a}?"))
    return [capital, capital, back, continent, language]


def word_relations():
    colour = Relation(
        "colour", named(facts.COLOURS, "a", "is", "colour"), "colour", "{a} {is} {colour}.",
        ["What colour {is} {a}?", "Which colour {is} {a}?", "What color {is} {a}?",
         "Tell me the colour of {a}.", "What is the colour of {a}?",
         "Which colour does {a} have?", "Do you know what colour {a} {is}?",
         "Name the colour of {a}."],
        (("thing", "a"), ("colour", "colour")),
        ("And {a}?", "What about {a}?", "And what colour {is} {a}?"))
    pairs = facts.OPPOSITES + [(b, a) for a, b in facts.OPPOSITES]
    opposite = Relation(
        "opposite", named(pairs, "a", "b"), "b", "the opposite of {a} is {b}.",
        ["What is the opposite of {a}?", "What's the opposite of {a}?",
         "Tell me the opposite of {a}.", "Give me the opposite of {a}.",
         "Name the opposite of {a}.", "Which word is the opposite of {a}?",
         "What is the opposite of the word {a}?", "Do you know the opposite of {a}?",
         "Which word means the opposite of {a}?"],
        (("word", "a"), ("opposite", "b")),
        ("And of {a}?", "And the opposite of {a}?", "What about {a}?", "And {a}?"))
    plural = Relation(
        "plural", named(facts.PLURALS, "a", "b"), "b", "the plural of {a} is {b}.",
        ["What is the plural of {a}?", "Tell me the plural of {a}.", "Give the plural of {a}.",
         "What's the plural of {a}?", "What is the plural of the word {a}?"],
        (("singular", "a"), ("plural", "b")), ("And of {a}?", "What about {a}?", "And {a}?"))
    past = Relation(
        "past", named(facts.PASTS, "a", "b"), "b", "the past tense of {a} is {b}.",
        ["What is the past tense of {a}?", "Tell me the past tense of {a}.",
         "Give the past tense of {a}.", "What's the past tense of {a}?",
         "What is the past of the verb {a}?"],
        (("verb", "a"), ("past", "b")), ("And of {a}?", "What about {a}?", "And {a}?"))
    return [colour, colour, opposite, opposite, plural, past]


def animal_relations():
    rows = with_article(named(facts.ANIMALS, "a", "sound", "young", "legs", "home", "class"))
    for row in rows:
        row["a_class"], row["a_young"] = article(row["class"]), article(row["young"])
        row["a_home"] = article(row["home"])
    follow = ("And {an}?", "What about {an}?")
    return [
        Relation("sound", rows, "sound", "{an} says {sound}.",
                 ["What sound does {an} make?", "What does {an} say?",
                  "Which sound does {an} make?", "Tell me the sound of {an}.",
                  "What noise does {an} make?"],
                 (("animal", "a"), ("sound", "sound")), follow),
        Relation("young", rows, "young", "a young {a} is called {a_young}.",
                 ["What is a young {a} called?", "What do we call a young {a}?",
                  "What is a baby {a} called?", "What is the name for a baby {a}?"],
                 (("animal", "a"), ("young", "young")),
                 ("And a young {a}?", "What about a young {a}?")),
        Relation("legs", rows, "legs", "{an} has {legs} legs.",
                 ["How many legs does {an} have?", "What is the number of legs of {an}?",
                  "Tell me how many legs {an} has."],
                 (("animal", "a"), ("legs", "legs")), follow, number=True),
        Relation("home", rows, "home", "{an} lives in {a_home}.",
                 ["Where does {an} live?", "What is the home of {an}?",
                  "Tell me where {an} lives."],
                 (("animal", "a"), ("home", "home")), follow),
        Relation("class", rows, "class", "{an} is {a_class}.",
                 ["What kind of animal is {an}?", "Which class of animal is {an}?",
                  "To which class of animals does {an} belong?"],
                 (("animal", "a"), ("class", "class")), follow),
    ]


def thing_relations():
    jobs = with_article(named(facts.JOBS, "a", "does"))
    tools = with_article(named(facts.TOOLS, "a", "use"))
    shapes = with_article(named(facts.SHAPES, "a", "sides"))
    members = [(word, name) for name, words in facts.CATEGORIES.items() for word in words
               if name not in ("colour", "animal", "drink", "sport") and word != "orange"]
    kinds = with_article(named(members, "a", "category"))
    for row in kinds:
        row["a_category"] = article(row["category"])
    return [
        Relation("job", jobs, "does", "{an} {does}.",
                 ["What does {an} do?", "What is the job of {an}?",
                  "Tell me what {an} does.", "What work does {an} do?"],
                 (("job", "a"), ("work", "does")), ("And {an}?", "What about {an}?")),
        Relation("tool", tools, "use", "we use {an} to {use}.",
                 ["What do we use {an} for?", "What is {an} for?", "What is the use of {an}?",
                  "What can you do with {an}?", "Tell me what {an} is for."],
                 (("thing", "a"), ("use", "use")), ("And {an}?", "What about {an}?")),
        Relation("shape", shapes, "sides", "{an} has {sides} sides.",
                 ["How many sides does {an} have?", "What is the number of sides of {an}?",
                  "Tell me how many sides {an} has."],
                 (("shape", "a"), ("sides", "sides")), ("And {an}?", "What about {an}?"),
                 number=True),
        Relation("category", kinds, "category", "{an} is {a_category}.",
                 ["What is {an}?", "What kind of thing is {an}?", "Tell me what {an} is.",
                  "What sort of thing is {an}?"],
                 (("word", "a"), ("category", "category")), ("And {an}?", "What about {an}?")),
    ]


def order_relations():
    rows = []
    for name, series in (("day", facts.DAYS), ("month", facts.MONTHS), ("season", facts.SEASONS)):
        for index, word in enumerate(series):
            after = series[(index + 1) % len(series)]
            rows.append({"a": word, "name": name, "after": after, "before": series[index - 1]})
    after = Relation(
        "after", rows, "after", "the {name} after {a} is {after}.",
        ["Which {name} comes after {a}?", "What {name} comes after {a}?",
         "What is the {name} after {a}?", "Which {name} follows {a}?",
         "Tell me the {name} after {a}.", "What comes after {a}?"],
        (("start", "a"), ("next", "after")),
        ("And after {a}?", "What about {a}?"))
    before = Relation(
        "before", rows, "before", "the {name} before {a} is {before}.",
        ["Which {name} comes before {a}?", "What {name} comes before {a}?",
         "What is the {name} before {a}?", "Tell me the {name} before {a}.",
         "What comes before {a}?"],
        (("start", "a"), ("previous", "before")),
        ("And before {a}?", "What about {a}?"))
    counts = Relation(
        "count", named(facts.COUNTS, "a", "n", "says"), "n", "{says}",
        ["How many {a}?", "Tell me this: how many {a}?", "I have a question: how many {a}?"],
        (("count", "n"),), (), number=True)
    return [after, before, counts]


RELATIONS = (country_relations() + word_relations() + animal_relations() + thing_relations()
             + order_relations())


SUM_PHRASINGS = [
    "What is {a} + {b}?", "What is {a} plus {b}?", "How much is {a} plus {b}?",
    "How much is {a} + {b}?", "Add {a} and {b}.", "Calculate {a} + {b}.",
    "What do you get if you add {a} and {b}?", "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.", "Tell me what {a} plus {b} is.", "What's {a} + {b}?",
    "What does {a} plus {b} make?", "Can you work out {a} + {b}?"]
DIFFERENCE_PHRASINGS = [
    "What is {a} - {b}?", "What is {a} minus {b}?", "How much is {a} minus {b}?",
    "How much is {a} - {b}?", "Take {b} from {a}.", "Calculate {a} - {b}.",
    "What do you get if you take {b} from {a}?", "Subtract {b} from {a}.",
    "Please take {b} away from {a}.", "Tell me what {a} minus {b} is.", "What's {a} - {b}?",
    "What is {a} take away {b}?", "Can you work out {a} - {b}?"]


def arithmetic(rng):
    """An addition or a subtraction with all numbers in 0..20."""
    if rng.random() < 0.5:
        a = rng.randint(0, 20)
        b = rng.randint(0, 20 - a)
        text, sign, result = rng.choice(SUM_PHRASINGS), "plus", a + b
    else:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        text, sign, result = rng.choice(DIFFERENCE_PHRASINGS), "minus", a - b
    mark = "+" if sign == "plus" else "-"
    return Ask("arithmetic", text.format(a=a, b=b), result, f"{a} {sign} {b} is {result}.",
               {"task": f"{a} {mark} {b}", "result": result})


def word_problem(rng):
    """A tiny word problem with one addition or subtraction."""
    name, other = rng.sample(facts.GIRLS + facts.BOYS, 2)
    thing = rng.choice(["apple", "ball", "book", "pear", "coin", "egg", "flower", "cake"])
    few = lambda n: f"{n} {thing}" if n == 1 else f"{n} {thing}s"
    if rng.random() < 0.5:
        a = rng.randint(1, 18)
        b = rng.randint(1, 20 - a)
        middle = rng.choice([f"{other} gives {name} {b} more.", f"{name} finds {b} more.",
                             f"{name} gets {b} more."])
        result = a + b
    else:
        a = rng.randint(2, 20)
        b = rng.randint(1, a)
        middle = rng.choice([f"{name} gives {b} to {other}.", f"{name} loses {b}.",
                             f"{name} sells {b}."])
        result = a - b
    text = f"{name} has {few(a)}. {middle} How many {thing}s does {name} have now?"
    return Ask("word problem", text, result, f"{name} has {few(result)} now.",
               {"name": name, thing + "s": result})


def compare(rng):
    """Which of two numbers, or of two animals, is bigger or smaller."""
    if rng.random() < 0.5:
        a, b = rng.sample(range(21), 2)
        x, y = str(a), str(b)
        first_is_bigger = a > b
    else:
        i, j = rng.sample(range(len(facts.SIZES)), 2)
        x, y = article(facts.SIZES[i]), article(facts.SIZES[j])
        first_is_bigger = i > j
    word = rng.choice(["bigger", "smaller"])
    win, lose = (x, y) if first_is_bigger == (word == "bigger") else (y, x)
    text = rng.choice([f"Which is {word}, {x} or {y}?", f"What is {word}, {x} or {y}?",
                       f"Tell me which is {word}, {x} or {y}."])
    short = int(win) if win.isdigit() else win
    return Ask("compare", text, short, capital_first(f"{win} is {word} than {lose}."),
               {word: short})


def neighbour(rng):
    """The number before or after another."""
    n = rng.randint(0, 19)
    if rng.random() < 0.5:
        word, a, result = "after", n, n + 1
    else:
        word, a, result = "before", n + 1, n
    text = rng.choice([f"Which number comes {word} {a}?", f"What number comes {word} {a}?",
                       f"What is the number {word} {a}?", f"Tell me the number {word} {a}."])
    return Ask("number", text, result, f"The number {word} {a} is {result}.", {"number": result})


def yes_or_no(rng):
    """A yes-or-no question about the class of a word."""
    names = [name for name in facts.CATEGORIES if name not in ("colour", "sport")]
    name = rng.choice(names)
    word = rng.choice([w for w in facts.CATEGORIES[name] if w != "orange"])
    true = rng.random() < 0.5
    other = rng.choice([n for n in names if n != name and {n, name} != {"animal", "bird"}])
    asked = name if true else other
    a = word if name == "drink" else article(word)
    an = article(asked)
    full = f"Yes, {a} is {an}." if true else f"No, {a} is not {an}. It is {article(name)}."
    return Ask("yes or no", f"Is {a} {an}?", "yes" if true else "no", full,
               {"answer": "yes" if true else "no"})


RELATION_SHARE = 0.52


def question(rng):
    """Draw one question that may be used for training."""
    while True:
        draw = rng.random()
        if draw < RELATION_SHARE:
            relation = rng.choice(RELATIONS)
            asked = relation.ask(rng.choice(relation.rows), rng.choice(relation.phrasings))
        elif draw < 0.78:
            asked = arithmetic(rng)
        elif draw < 0.86:
            asked = word_problem(rng)
        elif draw < 0.92:
            asked = compare(rng)
        elif draw < 0.96:
            asked = neighbour(rng)
        else:
            asked = yes_or_no(rng)
        if not reserved(asked.text):
            return asked


def chain(rng, count):
    """A question and follow-ups that only make sense after it."""
    if rng.random() < 0.15:
        asks = [arithmetic(rng) for _ in range(count)]
        for asked in asks[1:]:
            asked.text = rng.choice(["And {}?", "What about {}?"]).format(asked.record["task"])
        return asks
    relation = rng.choice([r for r in RELATIONS if r.follow_ups])
    rows = rng.sample(relation.rows, count)
    asks = [relation.ask(rows[0], rng.choice(relation.phrasings))]
    for row in rows[1:]:
        asks.append(relation.ask(row, rng.choice(relation.follow_ups)))
    return asks


def follow_up(rng):
    """A chain of questions that may be used for training."""
    while True:
        asks = chain(rng, rng.randint(2, 4))
        keys = [asks[0].text] + [a.text + " " + b.text for a, b in zip(asks, asks[1:])]
        if not any(reserved(key) for key in keys):
            return asks
