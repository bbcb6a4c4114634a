"""Chats: system lines, answer styles, small talk, memory, reading, lists, stories and refusals.

A chat is a list of messages with the keys role and content, as in chat requests.
"""

import re

import facts
import jsontasks
import stories
import world
from facts import article, capital_first

MODEL = "the Lockstep demo model"
REFUSAL = "I am a small demo model and I do not know that."

SYSTEMS = {
    "plain": ["You are a helpful assistant.", "You are a friendly assistant.",
              "You are a helpful and kind assistant.", "Be helpful.",
              "You are the Lockstep demo model.", "Answer the questions of the user.",
              "You are a helpful AI assistant.", "Answer in a full sentence.",
              "Please answer in full sentences."],
    "word": ["Answer in one word.", "Reply with one word only.", "Give short answers.",
             "Use only one word.", "Answer with a single word.", "Be brief. Answer in one word.",
             "You are a helpful assistant. Answer in one word."],
    "json": ["Answer in JSON.", "Reply only with JSON.", "Always answer with a JSON object.",
             "You are a helpful assistant. Answer in JSON.", "Write every answer as JSON.",
             "You answer in JSON."],
    "pirate": ["You are a pirate.", "Talk like a pirate.", "You are a friendly pirate."],
    "polite": ["Be very polite.", "You are a very polite assistant.", "Answer politely."],
    "teacher": ["You are a teacher.", "You are a kind teacher.", "Answer like a teacher."],
}
STYLE_REQUESTS = {
    "word": ["Answer in one word.", "One word only.", "Give a short answer."],
    "json": ["Answer in JSON.", "Reply with JSON.", "Write the answer as JSON."],
    "plain": ["Answer in a full sentence.", "Please answer in a full sentence."],
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def answer(asked, style):
    """The answer to a question in one of the styles."""
    if style == "word":
        return capital_first(str(asked.short))
    if style == "json":
        return jsontasks.dump({"answer": asked.short})
    return dress(asked.full, style)


def dress(text, style):
    """A full sentence in the voice of a style."""
    return {"pirate": f"Arr! {text}", "polite": f"With pleasure. {text}",
            "teacher": f"Good question! {text}"}.get(style, text)


def rough(rng, text):
    """Now and then type like a person in a hurry."""
    draw = rng.random()
    if draw < 0.06:
        return text.lower()
    if draw < 0.12:
        return text.lower().rstrip("?.")
    if draw < 0.16:
        return text.rstrip("?.")
    if draw < 0.20:
        return rng.choice(["Please tell me: ", "Hi! ", "Hello. ", "I have a question. ", "OK. "]) + text
    return text


SMALL_TALK = [
    (["Hello", "Hi", "Hey", "Hello!", "Hi!", "Hi there", "Hello there!", "Hey there!", "Hello, model!",
      "Good day!", "hello", "hi"], "Hello! How can I help you?"),
    (["Good morning", "Good morning!", "good morning"], "Good morning! How can I help you?"),
    (["Good evening", "Good evening!", "good evening"], "Good evening! How can I help you?"),
    (["How are you?", "How are you today?", "How do you do?", "how are you", "How is it going?",
      "Are you well?"], "I am fine, thank you. How can I help you?"),
    (["Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much.", "thanks",
      "Great, thank you.", "Thanks for your help."], "You are welcome!"),
    (["Bye", "Goodbye", "Goodbye!", "See you later.", "Bye!", "See you soon!", "bye"],
     "Goodbye! Have a nice day."),
    (["Good night", "Good night!"], "Good night! Sleep well."),
    (["What can you do?", "What are you able to do?", "How can you help me?", "Can you help me?",
      "What do you know?", "Help", "help", "What can I ask you?", "What are you good at?",
      "Tell me what you can do."],
     "I can tell short stories, answer simple questions, add and subtract numbers up to 20, and "
     "write JSON."),
    (["What is Lockstep?", "Tell me about Lockstep.", "Do you know Lockstep?", "what is lockstep"],
     "Lockstep is a server for text generation, and I am its demo model."),
    (["Are you a human?", "Are you a person?", "Are you real?", "Are you a robot?"],
     "No, I am a small language model."),
    (["Are you big?", "How big are you?", "How many parameters do you have?", "Are you small?"],
     "I am very small. I have about six million parameters."),
    (["Do you like me?", "Do you like music?", "Do you have feelings?", "Are you happy?"],
     "I am only a small model, but I am glad to help you."),
    (["How old are you?", "When were you born?", "What is your age?"],
     "I do not have an age. I am a small language model."),
    (["Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh."],
     "Why did the clock go to school? Because it wanted to learn the time!"),
    (["Tell me another joke.", "Another joke, please."],
     "What is green and jumps? A frog who is late for dinner!"),
    (["You are great!", "Well done!", "Good job!", "Very good!", "You are smart."],
     "Thank you! That is kind of you."),
    (["That is wrong.", "You are wrong.", "No, that is not right."],
     "I am sorry. I am a small model and I make mistakes."),
    (["I am sad.", "I feel sad.", "I am not happy today."],
     "I am sorry to hear that. Shall I tell you a story?"),
    (["I am happy.", "I feel great today!", "I am happy today!"], "That is good to hear!"),
    (["What is your favourite colour?", "Which colour do you like?", "Do you have a favourite colour?"],
     "I like blue, like the sky."),
    (["Who made you?", "Who trained you?", "Where do you come from?", "How were you made?"],
     "I was trained by the Lockstep project on texts that a small program wrote."),
    (["Where do you live?", "Where are you?"], "I live inside the Lockstep server."),
    (["OK", "Okay", "Ok.", "I see.", "Yes.", "No.", "Interesting!"], "What else can I do for you?"),
    (["I am bored.", "I have nothing to do."], "Shall I tell you a story?"),
]
IDENTITY = ["Who are you?", "What are you?", "What is your name?", "Who am I talking to?",
            "Tell me who you are.", "What are you called?", "Introduce yourself.", "who are you",
            "Do you have a name?", "Please introduce yourself."]
IDENTITY_ANSWER = f"I am {MODEL}, a small language model."

UNKNOWN_QUESTIONS = [
    "Who won the {x} in {year}?", "What is the population of {p}?", "Who is the president of {p}?",
    "Who is {n}?", "Who was {n}?", "What do you think about {x}?", "How does a {x} work?",
    "What is the capital of {p}?", "How far is it to {p}?", "Who wrote {p}?", "Tell me about {p}.",
    "What is the weather in {p}?", "What happened in {year}?", "Explain {x}.", "What is {x}?",
    "What is the price of {x}?", "How do I install {x}?", "Write a program for {x}.",
    "Who invented the {x}?", "What is the meaning of {x}?", "How tall is {n}?",
    "What is the square root of {year}?", "What is {year} times {small}?", "When did {n} die?",
    "Why is {x} important?", "What is {big} + {year}?", "Translate {x} into {p}.",
    "Can you explain {x} to me?", "What time is it?", "What is the date today?",
    "What is the news today?", "What is the weather like today?", "Is {n} famous?",
    "Describe {x}.", "Write a poem about {x}.", "How do I cook {x}?", "Write code for {x}.",
    "What is {over} + {small}?", "How much is {over} plus {over}?", "What is {over} - {small}?",
    "What is {small} times {small}?", "What is {over} divided by {small}?", "Add {over} and {small}.",
    "What is {small} - {over}?", "What is {year} + {big}?", "Who is the king of {p}?",
    "Who is the best {x} in {p}?", "Recommend a {x}.", "Do you speak {p}?", "What colour is {p}?", "How old is {n}?", "Where is {p}?"]
UNKNOWN_THINGS = ("quantum physics|democracy|the internet|a compiler|bitcoin|philosophy|chemistry|"
                  "the stock market|gravity|an engine|photosynthesis|evolution|blockchain|a laser|"
                  "world cup|election|computer|telephone|economy|inflation|relativity|a virus|"
                  "Python|Rust|Linux|software|electricity|the moon landing|a black hole|an atom|"
                  "algebra|calculus|the law|history|art|religion|politics|a neural network|"
                  "machine learning|steam engine|radio|television|a rocket|a database").split("|")
UNKNOWN_PLACES = ("Atlantis|Mars|California|Texas|Belgium|Switzerland|Scotland|Pakistan|Nigeria|"
                  "Ukraine|Hamlet|Manhattan|Hogwarts|Narnia|Jupiter|Venus|New York|Florida|"
                  "Bolivia|Ecuador|Sudan|Somalia|Malta|Cyprus|Latvia|Serbia|Korea|the Moon").split("|")
UNKNOWN_NAMES = ("Napoleon|Einstein|Shakespeare|Mozart|Newton|Darwin|Cleopatra|Caesar|Picasso|"
                 "Beethoven|Columbus|Lincoln|Gandhi|Aristotle|Plato|Galileo|Elvis").split("|")


def made_up(rng):
    """A word that does not exist."""
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l", "s"])
                   for _ in range(rng.randint(2, 4)))


def unknown(rng, held_out=False):
    """A question about something outside the world."""
    while True:
        place = rng.choice(UNKNOWN_PLACES) if rng.random() < 0.5 else made_up(rng).capitalize()
        name = rng.choice(UNKNOWN_NAMES) if rng.random() < 0.5 else made_up(rng).capitalize()
        thing = rng.choice(UNKNOWN_THINGS) if rng.random() < 0.7 else made_up(rng)
        text = rng.choice(UNKNOWN_QUESTIONS).format(
            x=thing, p=place, n=name, year=rng.randint(100, 2030), small=rng.randint(3, 20),
            over=rng.randint(21, 120), big=rng.randint(50, 999))
        if world.reserved(text) == held_out:
            return text


def memory(rng):
    """The user tells something and asks for it later: (statement, reply, question, answer)."""
    name = jsontasks.any_name(rng)
    colour, animal = rng.choice(facts.CATEGORIES["colour"]), rng.choice(facts.CATEGORIES["animal"])
    town, age, pet = rng.choice(facts.TOWNS), rng.randint(5, 90), rng.choice(facts.PETS)
    fruit = rng.choice(facts.CATEGORIES["fruit"])
    return rng.choice([
        (["My name is {v}.", "I am {v}.", "Hello, my name is {v}.", "Hi, I am {v}.", "Call me {v}."],
         "Nice to meet you, {v}!",
         ["What is my name?", "Do you know my name?", "Who am I?", "What am I called?"],
         "Your name is {v}.", name),
        (["My name is {v}.", "I am {v}.", "Hello, my name is {v}.", "Hi, I am {v}.", "Call me {v}."],
         "Nice to meet you, {v}!",
         ["What is my name?", "Do you know my name?", "Who am I?", "What am I called?"],
         "Your name is {v}.", name),
        (["My favourite colour is {v}.", "I like the colour {v} best."], "{V} is a nice colour.",
         ["What is my favourite colour?", "Which colour do I like best?"],
         "Your favourite colour is {v}.", colour),
        (["I live in {v}.", "My home is in {v}."], "{v} is a nice place.",
         ["Where do I live?", "In which city do I live?"], "You live in {v}.", town),
        (["I am {v} years old.", "My age is {v}."], "Thank you for telling me.",
         ["How old am I?", "What is my age?"], "You are {v} years old.", str(age)),
        ([f"I have a {animal} named {{v}}.", f"My {animal} is called {{v}}."], "{v} is a lovely name.",
         [f"What is the name of my {animal}?", f"What is my {animal} called?"],
         f"Your {animal} is called {{v}}.", pet),
        (["My favourite fruit is {v}.", "I like {v} more than any other fruit."],
         "That is a good choice.", ["What is my favourite fruit?", "Which fruit do I like best?"],
         "Your favourite fruit is {v}.", fruit)])


def memory_parts(rng):
    statements, reply, questions, told, value = memory(rng)
    fill = lambda text: text.format(v=value, V=capital_first(value))
    statement = fill(rng.choice(statements))
    if "I am" in statement and not value.isdigit() and value.lower() in ("happy", "sad", "bored"):
        return memory_parts(rng)
    return statement, fill(reply), rng.choice(questions), fill(told)


def reading(rng):
    """A short passage with a question about it: a question object."""
    a, b = rng.sample(facts.GIRLS + facts.BOYS, 2)
    x, y = rng.sample(facts.OBJECTS, 2)
    c, d = rng.sample(facts.CATEGORIES["colour"], 2)
    p, q = rng.sample(stories.PLACES, 2)
    kind = rng.randrange(3)
    first = rng.random() < 0.5
    if kind == 0:
        told = f"{a} has {article(c + ' ' + x)} and {b} has {article(d + ' ' + y)}."
        who, thing, colour = (a, x, c) if first else (b, y, d)
        text, short, full = rng.choice([
            (f"What colour is the {thing}?", colour, f"The {thing} is {colour}."),
            (f"Who has the {thing}?", who, f"{who} has the {thing}."),
            (f"What does {who} have?", f"{colour} {thing}", f"{who} has {article(colour + ' ' + thing)}.")])
    elif kind == 1:
        told = f"{a} goes to {p}. {b} goes to {q}."
        who, place = (a, p) if first else (b, q)
        text, short, full = rng.choice([
            (f"Where does {who} go?", place, f"{who} goes to {place}."),
            (f"Who goes to {place}?", who, f"{who} goes to {place}.")])
    else:
        m, n = rng.sample(range(3, 60), 2)
        told = f"{a} is {m} years old. {b} is {n} years old."
        who, age = (a, m) if first else (b, n)
        text, short, full = rng.choice([
            (f"How old is {who}?", age, f"{who} is {age} years old."),
            ("Who is older?", a if m > n else b, f"{a if m > n else b} is older.")])
    return world.Ask("reading", told + " " + text, short, full)


def listing(rng):
    """Lists and counting: (text, answer)."""
    draw = rng.random()
    if draw < 0.4:
        start = rng.randint(0, 16)
        stop = rng.randint(start + 2, 20)
        if rng.random() < 0.25:
            return (rng.choice([f"Count down from {stop} to {start}.", f"Count back from {stop} to {start}."]),
                    ", ".join(str(n) for n in range(stop, start - 1, -1)))
        return (rng.choice([f"Count from {start} to {stop}.", f"Please count from {start} to {stop}.",
                            f"Can you count from {start} to {stop}?",
                            f"Write the numbers from {start} to {stop}."]),
                ", ".join(str(n) for n in range(start, stop + 1)))
    if draw < 0.5:
        name, series = rng.choice([("days of the week", facts.DAYS), ("months of the year", facts.MONTHS),
                                   ("seasons", facts.SEASONS)])
        return (rng.choice([f"List the {name}.", f"Name the {name}.", f"What are the {name}?",
                            f"Tell me the {name}."]), ", ".join(series))
    kind = rng.choice(list(facts.CATEGORIES))
    count = rng.randint(2, 5)
    number = rng.choice([["two", "three", "four", "five"][count - 2], str(count)])
    text = rng.choice([f"Name {number} {kind}s.", f"List {number} {kind}s.", f"Tell me {number} {kind}s.",
                       f"Give me {number} {kind}s.", f"Can you name {number} {kind}s?"])
    return text, ", ".join(facts.CATEGORIES[kind][:count])


def repeating(rng):
    """Repeat a sentence: (text, answer)."""
    text = rng.choice([stories_sentence(rng), world.question(rng).full,
                       capital_first(f"{made_up(rng)} {made_up(rng)}.")])
    return rng.choice(["Repeat after me: ", "Repeat this: ", "Say this: ", "Please repeat: "]) + text, text


def stories_sentence(rng):
    return re.split(r"(?<=\.) ", stories.opening(stories.Scene(rng))[0])[0]


def story_request(rng):
    """A wish for a story and the story."""
    wish, about = {}, "something nice"
    draw = rng.random()
    if draw < 0.45:
        wish["kind"] = rng.choice(stories.CREATURES)
        about = article(wish["kind"])
        if rng.random() < 0.3:
            wish["name"] = rng.choice(facts.GIRLS + facts.BOYS)
            about += f" named {wish['name']}"
    elif draw < 0.65:
        wish["name"], wish["kind"] = rng.choice(facts.GIRLS + facts.BOYS), ""
        about = f"a {'boy' if wish['name'] in facts.BOYS else 'girl'} named {wish['name']}"
    elif draw < 0.85:
        wish["thing"] = rng.choice(stories.THINGS)
        about = article(wish["thing"])
    text = rng.choice(["Tell me a story about {}.", "Write a story about {}.",
                       "Please tell me a story about {}.", "Write a short story about {}.",
                       "Can you tell me a story about {}?", "I want a story about {}.",
                       "Tell me a short story about {}.", "A story about {}, please."]).format(about)
    if about == "something nice":
        text = rng.choice(["Tell me a story.", "Write a short story.", "Tell me a short story.",
                           "Please tell me a story.", "Can you tell me a story?", "Tell me a story"])
    if world.reserved(text):
        return story_request(rng)
    return text, stories.training_story(rng, **wish)
