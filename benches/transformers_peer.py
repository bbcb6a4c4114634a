#!/usr/bin/env python3
"""Times transformers as the example `speed` times ours: reads the same lines and answers with the same JSON.

    transformers_peer.py FOLDER [--device cuda] [--attention sdpa] [WORK...]

Weights and KV are bf16, attention is torch's own, tokens come back to the host in every step, as ours do.
"""

import argparse
import inspect
import json
import sys
import time
from pathlib import Path

import torch
import transformers


def say(line):
    print(json.dumps(line), flush=True)


class Peer:
    """A model and the streams that stand."""

    def __init__(self, folder, device, attention):
        self.device = device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.bfloat16, attn_implementation=attention).to(device).eval()
        self.vocabulary = self.model.config.vocab_size
        # Logits of the last position alone, as ours are: the option has had two names.
        known = inspect.signature(self.model.forward).parameters
        names = ("logits_to_keep", "num_logits_to_keep")
        self.last_only = {name: 1 for name in names if name in known}
        self.standing = None
        self.cache = None
        self.sampled = []
        self.depth = 0

    def run(self, tokens):
        """One step of rows of tokens, one a stream: seconds."""
        begun = time.perf_counter()
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=self.device)
            found = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **self.last_only)
            self.cache = found.past_key_values
            self.sampled = found.logits[:, -1].argmax(-1).tolist()
        self.depth += len(tokens[0])
        return time.perf_counter() - begun

    def open(self, streams, prompt):
        self.cache, self.depth, self.standing = None, 0, (streams, prompt)
        of = lambda stream: [(stream * 7919 + row * 104_729) % self.vocabulary for row in range(prompt)]
        return self.run([of(stream) for stream in range(streams)])

    def decode(self, streams, prompt, steps):
        if self.standing != (streams, prompt):
            self.open(streams, prompt)
        return [self.run([[token] for token in self.sampled]) for _ in range(steps)]

    def time(self, line):
        work, *numbers = line.replace(":", " ").split()
        numbers = [int(number) for number in numbers]
        if work == "prefill":
            streams, tokens, steps = 1, numbers[0], [self.open(1, numbers[0])]
        elif work == "decode":
            streams, tokens, steps = numbers[0], numbers[0] * numbers[2], self.decode(*numbers)
        else:
            raise SystemExit(f"time {line!r}: say `prefill TOKENS` or `decode STREAMS PROMPT STEPS`")
        say({"work": work, "streams": streams, "tokens": tokens, "depth": self.depth, "seconds": sum(steps),
             "median_step_seconds": sorted(steps)[len(steps) // 2], "sampled": self.sampled})


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("works", nargs="*")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--attention", default="sdpa", help="another of transformers' implementations")
    given = arguments.parse_intermixed_args()
    begun = time.perf_counter()
    peer = Peer(given.folder, given.device, given.attention)
    say({"ready": f"transformers {transformers.__version__}, torch {torch.__version__}",
         "seconds": time.perf_counter() - begun})
    for line in given.works or sys.stdin:
        peer.time(line.strip())


if __name__ == "__main__":
    main()
