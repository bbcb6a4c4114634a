"""The row about long contexts: what reading their KV costs beside what reading so many bytes takes."""

import contextlib

import models
from turns import Contestant, figure, median

CONTEXT = 8192
STEPS = 8
KINDS = ("bf16", "int8")


def long_contexts(suite, name="1b"):
    """How much longer a step behind a long prompt takes than one behind a short one, turn by turn. Streams stand
    in engines of their own: a prompt is computed once."""
    folder = suite.folder / name
    models.write_folder(models.SHAPES[name], folder)
    command = [suite.speed, folder, "--threads", suite.given.threads]
    extra, shares = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        limits = stack.enter_context(Contestant("limits", [suite.limits, "--threads", suite.given.threads]))
        short = stack.enter_context(Contestant("short", command))
        long = {kind: stack.enter_context(Contestant(kind, [*command, "--kv-cache-dtype", kind])) for kind in KINDS}
        for turn in range(suite.given.pairs + 1):
            bandwidth = limits.ask("bandwidth")["per_second"]
            before = short.ask(f"decode 1 64 {STEPS}")
            for kind, engine in long.items():
                answer = engine.ask(f"decode 1 {CONTEXT} {STEPS}")
                seconds = answer["median_step_seconds"] - before["median_step_seconds"]
                read = engine.about["kv_token_bytes"] * (answer["depth"] - before["depth"])
                if turn > 0:
                    extra[kind].append(seconds)
                    shares[kind].append(read / bandwidth / seconds)
    faster = median([one / other for one, other in zip(extra["bf16"], extra["int8"])])
    smaller = long["bf16"].about["kv_token_bytes"] / long["int8"].about["kv_token_bytes"]
    return [", ".join(f"{kind} {figure(median(shares[kind]), '.0%')}" for kind in KINDS),
            f"reading KV of {CONTEXT:,} tokens at the bandwidth over the time a step takes for it: "
            + ", ".join(f"{1e3 * median(extra[kind]):.2f} ms in {kind}" for kind in KINDS)
            + f"; int8 is {smaller:.2f} times smaller and {faster:.2f} times as fast"]


def attention(suite):
    """How fast attention alone reads KV, the kernel of one layer after the other, beside plain reading."""
    shares, rates = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
    with Contestant("limits", [suite.limits, "--threads", suite.given.threads]) as limits:
        # A turn takes milliseconds, and bandwidth changes within seconds.
        for turn in range(5 * suite.given.pairs + 1):
            for kind in KINDS:
                bandwidth = limits.ask("bandwidth")["per_second"]
                rate = limits.ask(f"kv-{kind}")["per_second"]
                if turn > 0:
                    shares[kind].append(rate / bandwidth)
                    rates[kind].append(rate)
    return [", ".join(f"{kind} {figure(median(shares[kind]), '.0%')}" for kind in KINDS),
            f"bytes a second at which attention reads KV of {CONTEXT:,} tokens, one stream, over those of plain reading: "
            + ", ".join(f"{1e-9 * median(rates[kind]):.1f} GB/s in {kind}" for kind in KINDS)]


ROWS = {"decode behind 8,192 tokens, Llama-3.2-1B shape": long_contexts,
        "attention over 8,192 tokens, Llama-3.2-1B shape": attention}
