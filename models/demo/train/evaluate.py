"""Score the model on the held-out prompts, greedily, and show sample texts.

Usage: python evaluate.py [--model FOLDER] [--samples] [--failures]
"""

import argparse
import json
import pathlib
import random
import re

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import corpus
import held_out
import stories
from chat import system, user
from model import Config, Llama

STOP = (0, 2)  # <|endoftext|> and <|im_end|>


def load(folder):
    """The exported model (bf16 weights, float32 arithmetic) and its tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    model = Llama(Config(num_hidden_layers=config["num_hidden_layers"]))
    weights = {name: w.float() for name, w in load_file(str(folder / "model.safetensors")).items()}
    model.load_state_dict(weights)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()
def greedy(model, ids, limit, stop=STOP):
    """Greedy continuation with a cache of keys and values."""
    pasts, out, feed = [[] for _ in model.model.layers], [], torch.tensor([ids])
    while len(out) < limit:
        hidden = model.hidden(feed, pasts)[:, -1]
        chosen = int((hidden @ model.model.embed_tokens.weight.T).argmax())
        if chosen in stop:
            break
        out.append(chosen)
        feed = torch.tensor([[chosen]])
    return out


def generate(model, tokenizer, item, limit=80):
    """The model's answer to a chat or a plain prompt."""
    text = item["prompt"] if "prompt" in item else corpus.render(item["messages"], True)
    return tokenizer.decode(greedy(model, tokenizer.encode(text).ids, limit))


def tidy(text):
    """Without capitals, outer white space and a final full stop."""
    return text.strip().rstrip(".").lower()


def matches(rule, answer, said):
    """True if what the model said is right under the item's match rule."""
    if rule == "line":
        said = said.strip().split("\n")[0]
    if rule in ("exact", "line"):
        return tidy(said) == tidy(answer)
    if rule == "members":
        parts = [part.strip() for part in said.strip().rstrip(".").split(",")]
        return is_members(parts, answer)
    try:
        value = json.loads(said)
    except ValueError:
        return False
    if rule == "json_keys":
        return (isinstance(value, dict) and list(value) == answer
                and all(v not in ("", None) for v in value.values()))
    return is_members(value, answer) if rule == "json_members" else value == answer


def is_members(parts, answer):
    """True for the right number of different members of the set."""
    return (isinstance(parts, list) and len(parts) == len(set(parts)) == answer["count"]
            and set(parts) <= set(answer["among"]))


def rounded(model):
    """A copy of the model with weights rounded to bf16, as they are exported."""
    copy = Llama(model.config)
    copy.load_state_dict({name: w.to(torch.bfloat16).float()
                          for name, w in model.state_dict().items()})
    return copy.eval()


def score(model, tokenizer, prompts):
    """(item, said, right) for every prompt, with the weights rounded to bf16."""
    model, results = rounded(model), []
    for item in prompts:
        said = generate(model, tokenizer, item)
        results.append((item, said, matches(item["match"], item["answer"], said)))
    return results


def summary(results):
    """Right answers in all and by kind, in one line."""
    kinds = {}
    for item, _, right in results:
        kind = "json task" if item["kind"].startswith("json ") and item["kind"] != "json answer" \
            else item["kind"]
        got, count = kinds.get(kind, (0, 0))
        kinds[kind] = (got + right, count + 1)
    total = sum(right for _, _, right in results)
    parts = ", ".join(f"{kind} {got}/{count}" for kind, (got, count) in kinds.items())
    return f"{total}/{len(results)} = {total / len(results):.1%} ({parts})"


SAMPLE_CHATS = [
    [user("Hello!")], [user("Who are you?")], [user("What can you do?")],
    [user("Tell me a story about a dog.")], [user("What is the capital of Blorvania?")],
    [system("Answer in one word."), user("What is the capital of Japan?")],
    [system("Answer in JSON."), user("What is 7 + 8?")],
    [system("You are Zuri, a friendly robot."), user("Who are you?")],
    [user("Write JSON with the name and age of a girl.")],
    [user("Write a JSON object with the name Anna, the age 9 and the city Rome.")],
    [user("what is the opposite of big")], [user("Count from 5 to 15.")]]
SAMPLE_PROMPTS = ["Once upon a time", "Once upon a time, there was a little fox named Mia.",
                  "Question: What is the capital of France?\nAnswer:", "The capital of Italy is",
                  "3 + 4 ="]


def show_samples(model, tokenizer, openings):
    """Print chats, plain continuations and stories from held-out openings."""
    for messages in SAMPLE_CHATS:
        said = generate(model, tokenizer, {"messages": messages}, 260)
        print(" / ".join(m["content"] for m in messages), "->", said, "\n")
    for prompt in SAMPLE_PROMPTS + openings:
        print(f"{prompt} ||{generate(model, tokenizer, {'prompt': prompt}, 260)}\n")


def sentence_shapes(text):
    """The sentences of a story, with one word for all names, things, places and foods."""
    names = r"\b(" + "|".join(stories.BOYS + stories.GIRLS) + r")\b"
    words = stories.THINGS + stories.PLACES + stories.FOODS + stories.CREATURES + ["boy", "girl"]
    nouns = r"\b(an? )?(" + "|".join(words) + r")\b"
    kept = re.sub(nouns, "thing", re.sub(names, "Name", text))
    return [part.strip(' "') for part in re.split(r"(?<=[.!?])\"?\s+", kept) if part.strip(' "')]


def story_report(model, tokenizer, openings):
    """Continue the openings for 150 tokens; look for sentences that the grammar does not know."""
    rng, known = random.Random(5), set()
    for _ in range(20000):
        known.update(sentence_shapes(stories.story(rng)))
    total, odd = 0, []
    for opening in openings:
        ids = greedy(model, tokenizer.encode(opening).ids, 150)
        whole = opening + tokenizer.decode(ids)
        shapes = sentence_shapes(whole)
        if len(ids) == 150:
            shapes = shapes[:-1]  # cut in the middle of a sentence
        total += len(shapes)
        odd += [shape for shape in shapes if shape not in known]
    print(f"stories: {total - len(odd)}/{total} sentences follow the grammar; others: {odd}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    here = pathlib.Path(__file__).resolve().parents[1]
    parser.add_argument("--model", default=here, type=pathlib.Path)
    parser.add_argument("--samples", action="store_true", help="print sample texts")
    parser.add_argument("--failures", action="store_true", help="print wrong answers")
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    listed = json.loads((options.model / "held_out.json").read_text())
    results = score(model, tokenizer, listed["prompts"])
    print("held-out: " + summary(results))
    if options.failures:
        for item, said, right in results:
            if not right:
                asked = item.get("prompt") or item["messages"][-1]["content"]
                print(f"[{item['kind']}] {asked!r}: {said!r} instead of {item['answer']!r}")
    story_report(model, tokenizer, listed["stories_held_out"])
    if options.samples:
        show_samples(model, tokenizer, listed["stories_held_out"])


if __name__ == "__main__":
    main()
