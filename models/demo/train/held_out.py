"""Make the list of held-out prompts with their answers, and check that training never saw them.

Usage: python held_out.py [OUTPUT_FOLDER]

Every item has: kind, messages (a chat) or prompt (plain text), answer, match, and unseen, the
text that must not occur in any training document. The match rules are

    exact     the answer is the text, but for capitals, outer white space and a final full stop
    line      the same for the first line of the answer
    json      the answer parses as JSON and equals the value
    json_keys the answer parses as a JSON object with just these keys, none of them empty
    members   the answer is a comma-separated list of so many different members of a set
    json_members  the same as a JSON array
"""

import json
import pathlib
import random
import sys

import chat
import corpus
import facts
import jsontasks
import stories
import world
from chat import assistant, system, user

# kind of prompt, how many
PLAN = [("fact", 34), ("fact with system line", 14), ("arithmetic", 22), ("word problem", 6),
        ("one word", 16), ("json answer", 16), ("voice", 6), ("follow-up", 18), ("memory", 10),
        ("reading", 8), ("json task", 20), ("list", 8), ("unknown", 5),
        ("persona", 3), ("plain", 14)]


def reserved_ask(rng, kinds=None, without=("arithmetic", "word problem")):
    """A question that training may not use."""
    while True:
        draw = rng.random()
        if kinds == ["arithmetic"]:
            asked = world.arithmetic(rng)
        elif kinds == ["word problem"]:
            asked = world.word_problem(rng)
        elif draw < 0.8:
            relation = rng.choice(world.RELATIONS)
            asked = relation.ask(rng.choice(relation.rows), rng.choice(relation.phrasings))
        elif draw < 0.9:
            asked = world.arithmetic(rng)
        else:
            asked = rng.choice([world.compare, world.neighbour, world.yes_or_no])(rng)
        if world.reserved(asked.text) and (kinds or asked.kind not in without):
            return asked


def item(kind, messages, answer, match="exact", unseen=None):
    """One held-out chat."""
    return {"kind": kind, "messages": messages, "answer": answer, "match": match,
            "unseen": unseen or messages[-1]["content"]}


def single(rng, kind):
    """A question with or without a system line."""
    style = {"one word": "word", "json answer": "json",
             "voice": rng.choice(["pirate", "polite", "teacher"])}.get(kind, "plain")
    kinds = [kind] if kind in ("arithmetic", "word problem") else None
    without = () if kind in ("one word", "json answer", "voice") else ("arithmetic",)
    asked = reserved_ask(rng, kinds, without)
    messages = [user(asked.text)]
    if kind == "fact with system line" or style != "plain":
        messages.insert(0, system(rng.choice(chat.SYSTEMS[style])))
    answer = chat.answer(asked, style)
    if style == "json":
        return item(kind, messages, json.loads(answer), "json")
    return item(kind, messages, answer)


def follow_up(rng):
    """A follow-up question whose combination with the question before is unseen."""
    while True:
        first, second = world.chain(rng, 2)
        if world.reserved(first.text + " " + second.text):
            messages = [user(first.text), assistant(first.full), user(second.text)]
            return item("follow-up", messages, second.full, unseen=corpus.render(messages))


def memory(rng):
    """Something the user said one question earlier."""
    while True:
        statement, reply, question, answer = chat.memory_parts(rng)
        if world.reserved(statement + " " + question):
            between = world.question(rng)
            messages = [user(statement), assistant(reply), user(between.text),
                        assistant(between.full), user(question)]
            return item("memory", messages, answer, unseen=corpus.render(messages))


def reading(rng):
    while True:
        asked = chat.reading(rng)
        if world.reserved(asked.text):
            return item("reading", [user(asked.text)], asked.full)


def json_task(rng):
    kind, text, value = jsontasks.task(rng, held_out=True)
    if kind == "json free":
        return item(kind, [user(text)], list(value), "json_keys")
    if kind == "json array" and isinstance(value[0], str):
        return item(kind, [user(text)], members(value), "json_members")
    return item(kind, [user(text)], value, "json")


def members(values):
    """The number of things asked for and the set they come from."""
    among = next(words for words in facts.CATEGORIES.values() if set(values) <= set(words))
    return {"count": len(values), "among": among}


def listing(rng):
    while True:
        text, answer = chat.listing(rng)
        if world.reserved(text):
            parts = answer.split(", ")
            if parts[0].isdigit() or parts[0] in facts.DAYS + facts.MONTHS + facts.SEASONS:
                return item("list", [user(text)], answer)
            return item("list", [user(text)], members(parts), "members")


def unknown(rng):
    return item("unknown", [user(chat.unknown(rng, held_out=True))], chat.REFUSAL)


def persona(rng):
    line, _, identity = corpus.persona(rng, held_out=True)
    return item("persona", [system(line), user("Who are you?")], identity, unseen=line)


def plain(rng):
    """A question in plain text, without the chat template."""
    asked = reserved_ask(rng, without=())
    return {"kind": "plain", "prompt": f"Question: {asked.text}\nAnswer:",
            "answer": str(asked.short), "match": "line", "unseen": asked.text}


MAKERS = {"follow-up": follow_up, "memory": memory, "reading": reading, "json task": json_task,
          "list": listing, "unknown": unknown, "persona": persona, "plain": plain}


def make(seed=77):
    """The whole list; no text occurs twice."""
    rng, items, seen = random.Random(seed), [], set()
    for kind, count in PLAN:
        while count:
            made = MAKERS[kind](rng) if kind in MAKERS else single(rng, kind)
            if made["unseen"] not in seen:
                seen.add(made["unseen"])
                items.append(made)
                count -= 1
    return items


def make_openings(seed=78, count=20):
    """Story openings (two sentences) whose first words training never shows."""
    rng, openings = random.Random(seed), []
    while len(openings) < count:
        lines = stories.opening(stories.Scene(rng))
        if stories.held_out_opening(" ".join(lines)) and len(lines) > 1:
            openings.append(" ".join(lines[:2]))
    return openings


def load(path):
    """The held-out prompts from their file."""
    return json.loads(pathlib.Path(path).read_text())["prompts"]


def occurs(unseen, text):
    """True if one of the held-out texts occurs in a document."""
    return any(words in text for words in unseen)


def assert_unseen(unseen, texts):
    """Stop if any held-out prompt occurs in the training text."""
    everything = "\n".join(texts)
    for words in unseen:
        assert words not in everything, f"held-out prompt in the training text: {words!r}"


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1])
    made = {"prompts": make(), "stories_held_out": make_openings()}
    (target / "held_out.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote {len(made['prompts'])} prompts and {len(made['stories_held_out'])} openings")
