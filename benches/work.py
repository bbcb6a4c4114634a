"""What is timed, in words and as what it takes at least."""

import models


def said(work):
    """A work in words."""
    name, *numbers = work.split()
    if name == "prefill":
        return f"prefill {numbers[0]}"
    streams = int(numbers[0])
    return "decode, batch 1" if streams == 1 else f"decode, {streams} streams"


def linear_weights(shape):
    """Weights of the layers' matrices, and of the head."""
    layers = sum(rows * columns for name, (rows, *rest) in models.tensors(shape) for columns in rest
                 if "embed" not in name and "lm_head" not in name)
    return layers, shape["vocabulary"] * shape["hidden"]


def least_seconds(shape, form, work, answer, limits):
    """What the work takes where the machine does nothing but read each weight and KV entry once a step and
    multiply, at its limits."""
    layers, head = linear_weights(shape)
    name, *numbers = work.split()
    rows, steps = (int(numbers[0]), 1) if name == "prefill" else (int(numbers[0]), int(numbers[2]))
    head_rows = 1 if name == "prefill" else rows
    peak = limits[form["peak"]]
    compute = 2 * (rows * layers + head_rows * head) / peak if peak else 0.0
    token = 2 * 2 * shape["layers"] * shape["kv_heads"] * shape["head_width"]
    kv = 0 if name == "prefill" else rows * token * answer["depth"]
    read = (form["bytes"] * (layers + head) + kv) / limits["bandwidth"]
    return steps * max(compute, read)
