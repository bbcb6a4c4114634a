"""Instructions that are answered in JSON."""

import json

import facts
import world

def dump(value):
    """JSON text as the model writes it."""
    return json.dumps(value, ensure_ascii=False)


def any_name(rng):
    """A first name; one in three is made up, so that names are copied rather than known."""
    if rng.random() < 0.33:
        return facts.invented_name(rng)
    return rng.choice(facts.GIRLS + facts.BOYS)


VALUES = {
    "name": any_name,
    "age": lambda rng: rng.randint(1, 99),
    "city": lambda rng: rng.choice(facts.TOWNS),
    "colour": lambda rng: rng.choice(facts.CATEGORIES["colour"]),
    "pet": lambda rng: rng.choice(facts.CATEGORIES["animal"]),
    "job": lambda rng: rng.choice(facts.JOBS)[0],
    "country": lambda rng: rng.choice(facts.COUNTRIES)[0],
    "fruit": lambda rng: rng.choice(facts.CATEGORIES["fruit"]),
    "price": lambda rng: rng.randint(1, 50),
}


def join(parts):
    """Join with commas and a final 'and'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def free_record(rng):
    """Keys are given, the values are free."""
    keys = ["name"] + rng.sample([k for k in VALUES if k != "name"], rng.randint(1, 3))
    who = rng.choice(["a boy", "a girl", "a person", "a child", "a teacher", "a farmer", "someone",
                      "a friend", "a pirate", "a cook"])
    text = rng.choice([
        f"Write JSON with the {join(keys)} of {who}.",
        f"Give me JSON with the {join(keys)} of {who}.",
        f"Make a JSON object with the {join(keys)} of {who}.",
        f"Write a JSON object for {who} with the keys {join(keys)}.",
        f"Describe {who} in JSON with the keys {join(keys)}.",
        f"Invent {who} and write the {join(keys)} as JSON."])
    return text, {key: VALUES[key](rng) for key in keys}


def given_record(rng):
    """Keys and values are both given."""
    keys = ["name"] + rng.sample([k for k in VALUES if k != "name"], rng.randint(1, 3))
    record = {key: VALUES[key](rng) for key in keys}
    parts = join([f"the {key} {value}" for key, value in record.items()])
    text = rng.choice([
        f"Write JSON with {parts}.", f"Make a JSON object with {parts}.",
        f"Give me a JSON object with {parts}.", f"Turn this into JSON: {parts}.",
        f"Write {parts} as JSON."])
    return text, record


def extract(rng):
    """A sentence is turned into JSON."""
    name, age = any_name(rng), rng.randint(1, 99)
    city, job = VALUES["city"](rng), VALUES["job"](rng)
    pet, colour = VALUES["pet"](rng), VALUES["colour"](rng)
    told, record = rng.choice([
        (f"{name} is {age} years old and lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"{name} lives in {city} and works as a {job}.", {"name": name, "city": city, "job": job}),
        (f"{name} is {age} years old and has {facts.article(pet)}.",
         {"name": name, "age": age, "pet": pet}),
        (f"{name} is {age} and likes the colour {colour}.",
         {"name": name, "age": age, "colour": colour}),
        (f"My name is {name} and I am {age} years old.", {"name": name, "age": age})])
    keys = join(list(record))
    text = told + " " + rng.choice([
        f"Write this as JSON with the keys {keys}.", "Write this as JSON.", "Turn this into JSON.",
        f"Give me the {keys} as JSON.", "Put this into a JSON object."])
    return text, record


def fact_record(rng):
    """A fact of the world as a JSON object."""
    relation = rng.choice([r for r in world.RELATIONS if r.kind in ("capital", "continent", "language",
                                                                     "opposite", "plural", "past")])
    row = rng.choice(relation.rows)
    record = relation.ask(row, relation.phrasings[0]).record
    (key, subject), (wanted, _) = record.items()
    text = rng.choice([
        f"Write JSON with the {key} {subject} and its {wanted}.",
        f"Give me the {wanted} of {subject} as a JSON object.",
        f"Write a JSON object with the {key} {subject} and the {wanted}."])
    return text, record


def array(rng):
    """A JSON array of things, of numbers or of days."""
    if rng.random() < 0.3:
        start = rng.randint(0, 15)
        stop = rng.randint(start + 1, min(20, start + 8))
        text = rng.choice([f"Write a JSON array of the numbers from {start} to {stop}.",
                           f"Give me the numbers from {start} to {stop} as a JSON array."])
        return text, list(range(start, stop + 1))
    kind = rng.choice(list(facts.CATEGORIES))
    count = rng.randint(2, 5)
    word = ["two", "three", "four", "five"][count - 2]
    number = rng.choice([word, str(count)])
    text = rng.choice([f"List {number} {kind}s as a JSON array.",
                       f"Give me a JSON array with {number} {kind}s.",
                       f"Write {number} {kind}s as a JSON array."])
    return text, facts.CATEGORIES[kind][:count]


MAKERS = {"json free": free_record, "json given": given_record, "json extract": extract,
          "json fact": fact_record, "json array": array}


def task(rng, kind=None, held_out=False):
    """One instruction and the value to write: (kind, text, value)."""
    kind = kind or rng.choice(list(MAKERS))
    while True:
        text, value = MAKERS[kind](rng)
        if world.reserved(text) == held_out:
            return kind, text, value
