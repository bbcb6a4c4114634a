"""Documents for training: chats in ChatML, plain questions and answers, statements, stories.

`document(rng)` draws one document. Everything is determined by the random generator's seed.
"""

import random

import chat
import jsontasks
import stories
import world
from chat import assistant, system, user
from facts import BOYS, GIRLS, capital_first

END_OF_TEXT = "<|endoftext|>"
PERSONA_KINDS = ["a friendly robot", "a wise owl", "a helpful cat", "a small dragon",
                 "a cheerful assistant", "a kind teacher", "a clever fox", "a library assistant"]


def render(messages, generation_prompt=False):
    """The text of a chat, as the chat template writes it."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if generation_prompt else "")


def unreserved(draw):
    """Draw until the text is one that training may use."""
    while True:
        drawn = draw()
        text = drawn.text if isinstance(drawn, world.Ask) else drawn[0]
        if not world.reserved(text):
            return drawn


def question_turn(rng, style):
    """One question, now and then with a wish for the style of the answer."""
    maker = rng.choices([world.question, chat.reading, world.compare, world.neighbour],
                        weights=[64, 26, 6, 4])[0]
    asked = unreserved(lambda: maker(rng))
    text = chat.rough(rng, asked.text) if asked.kind != "reading" else asked.text
    if style == "plain" and text[-1] in "?." and rng.random() < 0.15:
        wished = rng.choice(list(chat.STYLE_REQUESTS))
        text += " " + rng.choice(chat.STYLE_REQUESTS[wished])
        return [user(text), assistant(chat.answer(asked, wished))]
    return [user(text), assistant(chat.answer(asked, style))]


def follow_up_turns(rng, style):
    """A question and its follow-ups."""
    turns = []
    for asked in world.follow_up(rng):
        turns += [user(asked.text), assistant(chat.answer(asked, style))]
    return turns


def small_talk_turn(rng, style):
    """A greeting or another bit of small talk."""
    said, reply = rng.choice(chat.SMALL_TALK)
    return [user(rng.choice(said)), assistant(chat.dress(reply, style))]


def unknown_turn(rng, style):
    """A question outside the world, and the refusal."""
    return [user(chat.rough(rng, chat.unknown(rng))), assistant(chat.dress(chat.REFUSAL, style))]


def json_turn(rng):
    """An instruction answered in JSON."""
    _, text, value = jsontasks.task(rng)
    return [user(text), assistant(jsontasks.dump(value))]


def other_turn(rng):
    """Lists, repetitions and stories."""
    draw = rng.random()
    if draw < 0.65:
        text, told = unreserved(lambda: chat.listing(rng))
    elif draw < 0.80:
        text, told = chat.repeating(rng)
    else:
        text, told = chat.story_request(rng)
    return [user(text), assistant(told)]


def turn(rng, style, identity):
    """The messages of one exchange (or of a few that belong together)."""
    draw = rng.random()
    if draw < 0.40:
        return question_turn(rng, style)
    if draw < 0.50:
        return follow_up_turns(rng, style)
    if draw < 0.56:
        return small_talk_turn(rng, style)
    if draw < 0.60:
        return [user(rng.choice(chat.IDENTITY)), assistant(identity)]
    if draw < 0.66:
        return unknown_turn(rng, style)
    if style != "plain":
        return question_turn(rng, style)
    return json_turn(rng) if draw < 0.86 else other_turn(rng)


def system_line(rng):
    """A system line (or none) with its style and the answer to 'who are you?'."""
    draw = rng.random()
    if draw < 0.30:
        return None, "plain", chat.IDENTITY_ANSWER
    if draw < 0.42:
        return persona(rng)
    style = rng.choice(["plain"] * 3 + ["word"] * 4 + ["json"] * 4
                       + ["pirate", "polite", "teacher"])
    return rng.choice(chat.SYSTEMS[style]), style, chat.dress(chat.IDENTITY_ANSWER, style)


def persona(rng, held_out=False):
    """A system line that gives the model a name."""
    while True:
        name, kind = jsontasks.any_name(rng), rng.choice(PERSONA_KINDS)
        line = rng.choice([f"You are {name}, {kind}.", f"Your name is {name}. You are {kind}."])
        if world.reserved(line) == held_out:
            return line, "plain", f"I am {name}, {kind}."


def chat_messages(rng, turns):
    """A whole chat with about the given number of exchanges."""
    line, style, identity = system_line(rng)
    messages = []
    is_persona = line is not None and identity.startswith("I am ") and "Lockstep" not in identity
    if is_persona and rng.random() < 0.8:
        messages += [user(rng.choice(chat.IDENTITY)), assistant(identity)]
    remembered = None
    if style == "plain" and rng.random() < 0.25:
        remembered = unreserved_memory(rng)
        messages += [user(remembered[0]), assistant(remembered[1])]
    for _ in range(turns - 1 if messages else turns):
        messages += turn(rng, style, identity)
    if remembered:
        messages += [user(remembered[2]), assistant(remembered[3])]
    elif style == "plain" and rng.random() < 0.02:
        messages += [user("What is my name?"), assistant("You have not told me your name.")]
    return ([system(line)] if line else []) + messages


def unreserved_memory(rng):
    """A statement and a question whose combination is not held out."""
    while True:
        parts = chat.memory_parts(rng)
        if not world.reserved(parts[0] + " " + parts[2]):
            return parts


def question_document(rng):
    """Questions and answers in plain text."""
    ask, reply = rng.choice([("Question: ", "Answer: "), ("Question: ", "Answer: "), ("Q: ", "A: ")])
    count = 1 if rng.random() < 0.65 else rng.randint(2, 6)
    pairs = []
    for _ in range(count):
        asked = (world.question(rng) if rng.random() < 0.92
                 else unreserved(lambda: chat.reading(rng)))
        pairs.append(f"{ask}{asked.text}\n{reply}{capital_first(str(asked.short))}")
    return "\n\n".join(pairs)


def statement_document(rng):
    """Facts one after the other, as sentences."""
    return " ".join(world.question(rng).full for _ in range(rng.randint(1, 5)))


def sums_document(rng):
    """Sums and differences in figures, one a line."""
    lines = []
    for _ in range(rng.randint(1, 8)):
        record = world.arithmetic(rng).record
        lines.append(f"{record['task']} = {record['result']}")
    return "\n".join(lines)


def document(rng, turns=None):
    """One document, without the end mark; turns fixes the length of a chat."""
    draw = rng.random()
    if turns or draw < 0.71:
        return render(chat_messages(rng, turns or min(8, 1 + int(rng.expovariate(0.55)))))
    if draw < 0.87:
        return question_document(rng)
    if draw < 0.89:
        return statement_document(rng)
    if draw < 0.92:
        return sums_document(rng)
    return stories.training_story(rng)


def documents(seed, count):
    """A list of documents from a seed."""
    rng = random.Random(seed)
    return [document(rng) for _ in range(count)]


def long_documents(seed, count):
    """Chats of many turns, for the phase with the full context length."""
    rng = random.Random(seed)
    return [document(rng, turns=rng.randint(10, 45)) for _ in range(count)]


if __name__ == "__main__":
    for text in documents(1, 12):
        print(text + END_OF_TEXT, end="\n\n")
