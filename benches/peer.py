#!/usr/bin/env python3
"""Times llama.cpp as the example `speed` times ours: reads the same lines and answers with the same JSON.

    peer.py MODEL.gguf [--threads 2] [--memory map|own] [WORK...]

`--memory own` reads the weights into memory of its own instead of mapping the file. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment that memory is on huge pages, as ours is.
"""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

STREAMS = 16
# As many tokens of a stream as fit: prompts of 512 and answers behind short ones.
ROOM = 1024


def say(line):
    print(json.dumps(line), flush=True)


def silence():
    """Nothing but errors on standard error."""
    error = 4

    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level == error:
            sys.stderr.write(text.decode(errors="replace"))

    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    return log


def huge_page_bytes():
    """Bytes of this process that are on huge pages, where the system counts them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("AnonHugePages:")]
    return int(found[0]) * 1024 if found else None


def load(path, memory):
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    if hasattr(params, "load_mode"):
        params.load_mode = {
            "map": llama_cpp.LLAMA_LOAD_MODE_MMAP,
            "own": llama_cpp.LLAMA_LOAD_MODE_NONE,
        }[memory]
    else:
        params.use_mmap = memory == "map"
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    return model


class Peer:
    """A model with a context for each number of streams."""

    def __init__(self, model, threads):
        self.model = model
        self.threads = threads
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(ROOM, 0, 1)
        self.contexts = {}
        self.standing = None
        self.sampled = []
        self.depth = 0

    def context(self, streams):
        """Each stream has its own part of the KV cache, which suits streams that share nothing."""
        if streams not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = streams * ROOM
            params.n_seq_max = streams
            params.n_batch = ROOM
            params.n_ubatch = 512
            params.n_threads = self.threads
            params.n_threads_batch = self.threads
            params.kv_unified = False
            self.contexts[streams] = llama_cpp.llama_init_from_model(self.model, params)
            if not self.contexts[streams]:
                raise SystemExit(f"llama.cpp has no context for {streams} streams")
        return self.contexts[streams]

    def run(self, context, rows):
        """One llama_decode of rows (token, position, stream, whether its logits are wanted): seconds and the
        most probable tokens."""
        batch = self.batch
        begun = time.perf_counter()
        batch.n_tokens = len(rows)
        for row, (token, position, stream, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = stream
            batch.logits[row] = wanted
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode of {len(rows)} rows: status {status}")
        sampled = []
        for row in (row for row, given in enumerate(rows) if given[3]):
            logits = llama_cpp.llama_get_logits_ith(context, row)
            sampled.append(int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()))
        return time.perf_counter() - begun, sampled

    def open(self, streams, prompt):
        """The prompts of so many streams, each in a step of its own."""
        context = self.context(streams)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        seconds, self.sampled = 0.0, []
        for stream in range(streams):
            tokens = ((stream * 7919 + row * 104_729) % self.vocabulary for row in range(prompt))
            rows = [(token, row, stream, row == prompt - 1) for row, token in enumerate(tokens)]
            took, sampled = self.run(context, rows)
            seconds += took
            self.sampled += sampled
        self.standing, self.depth = (streams, prompt), prompt
        return seconds

    def decode(self, streams, prompt, steps):
        if self.standing != (streams, prompt) or self.depth + steps > ROOM:
            self.open(streams, prompt)
        seconds = 0.0
        for _ in range(steps):
            rows = [(token, self.depth, stream, True) for stream, token in enumerate(self.sampled)]
            took, self.sampled = self.run(self.context(streams), rows)
            seconds += took
            self.depth += 1
        return seconds

    def time(self, line):
        work, *numbers = line.replace(":", " ").split()
        numbers = [int(number) for number in numbers]
        if work == "prefill":
            streams, tokens, seconds = 1, numbers[0], self.open(1, numbers[0])
        elif work == "decode":
            streams, tokens, seconds = numbers[0], numbers[0] * numbers[2], self.decode(*numbers)
        else:
            raise SystemExit(f"time {line!r}: say `prefill TOKENS` or `decode STREAMS PROMPT STEPS`")
        say({"work": work, "streams": streams, "tokens": tokens, "depth": self.depth, "seconds": seconds,
             "sampled": self.sampled})


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=Path)
    arguments.add_argument("works", nargs="*")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--memory", choices=["map", "own"], default="map")
    given = arguments.parse_intermixed_args()
    log = silence()
    llama_cpp.llama_backend_init()
    begun = time.perf_counter()
    peer = Peer(load(given.model, given.memory), given.threads)
    say({"ready": f"llama-cpp-python {llama_cpp.__version__}", "threads": given.threads,
         "seconds": time.perf_counter() - begun, "huge_page_bytes": huge_page_bytes(),
         "system": llama_cpp.llama_print_system_info().decode()})
    for line in given.works or sys.stdin:
        peer.time(line.strip())
    del log


if __name__ == "__main__":
    main()
