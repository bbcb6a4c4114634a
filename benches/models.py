"""Models with random weights in the shapes of published ones: as Hugging Face folders, and as GGUF files that
hold the same weights.

Speed does not depend on what the weights are, so they are drawn once from N(0, 0.02), as untrained models are,
and read from that pool at another place for each tensor.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

# A prime, so that no two rows of a tensor are the same.
POOL = 33_554_393
DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"

SHAPES = {
    "1b": {
        "like": "Llama-3.2-1B",
        "family": "llama",
        "hidden": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "head_width": 64,
        "intermediate": 8192,
        "vocabulary": 128_256,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-5,
    },
    "05b": {
        "like": "Qwen2.5-0.5B",
        "family": "qwen2",
        "hidden": 896,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "head_width": 64,
        "intermediate": 4864,
        "vocabulary": 151_936,
        "rope_theta": 1_000_000.0,
        "norm_eps": 1e-6,
    },
}
# For GPUs.
LARGE_SHAPES = {
    "8b": {
        "like": "Llama-3.1-8B",
        "family": "llama",
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "head_width": 128,
        "intermediate": 14_336,
        "vocabulary": 128_256,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-5,
        "untied": True,
    },
    "7b": {
        "like": "Qwen2.5-7B",
        "family": "qwen2",
        "hidden": 3584,
        "layers": 28,
        "heads": 28,
        "kv_heads": 4,
        "head_width": 128,
        "intermediate": 18_944,
        "vocabulary": 152_064,
        "rope_theta": 1_000_000.0,
        "norm_eps": 1e-6,
        "untied": True,
    },
}
POSITIONS = 32_768
END = 2  # The demo tokenizer's token that ends an answer.


def tensors(shape):
    """(name, shape) of every tensor, named as on the Hub."""
    hidden, wide = shape["hidden"], shape["intermediate"]
    queries, keys = shape["heads"] * shape["head_width"], shape["kv_heads"] * shape["head_width"]
    yield "model.embed_tokens.weight", (shape["vocabulary"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, hidden)
            if shape["family"] == "qwen2":
                yield f"{at}self_attn.{name}_proj.bias", (rows,)
        yield at + "self_attn.o_proj.weight", (hidden, queries)
        yield at + "mlp.gate_proj.weight", (wide, hidden)
        yield at + "mlp.up_proj.weight", (wide, hidden)
        yield at + "mlp.down_proj.weight", (hidden, wide)
    if shape.get("untied"):
        yield "lm_head.weight", (shape["vocabulary"], hidden)


class Weights:
    """The weights of a shape, tensor by tensor."""

    def __init__(self, shape):
        drawn = np.random.default_rng(5).standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
        bits = drawn.view(np.uint32)
        # Rounded to the nearest, which is near enough.
        self.pool = ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
        self.starts = {name: (index * 1_000_003) % POOL for index, (name, _) in enumerate(tensors(shape))}

    def bf16(self, name, size):
        """The bits of a tensor."""
        count = int(np.prod(size))
        if name.endswith("norm.weight"):
            return np.full(size, 0x3F80, np.uint16)  # 1.0
        start = self.starts[name]
        whole, rest = divmod(start + count, POOL)
        if whole == 0:
            return self.pool[start:rest].reshape(size)
        return np.concatenate([self.pool[start:], *[self.pool] * (whole - 1), self.pool[:rest]]).reshape(size)


def config(shape):
    """config.json."""
    qwen = shape["family"] == "qwen2"
    return {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": shape["family"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "vocab_size": shape["vocabulary"],
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": shape["norm_eps"],
        "rope_theta": shape["rope_theta"],
        "hidden_act": "silu",
        "tie_word_embeddings": not shape.get("untied", False),
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": END,
    } | ({"use_sliding_window": False} if qwen else {"head_dim": shape["head_width"]})


def vocabulary(shape):
    """The demo model's tokenizer, with made-up words up to the shape's vocabulary: (tokenizer.json, tokens)."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    for number in range(len(known), shape["vocabulary"]):
        known[f"\u0120word{number}"] = number
    return tokenizer, sorted(known, key=known.get)


def write_folder(shape, folder):
    """A folder as on the Hub; does nothing where it stands."""
    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config(shape), indent=1))
    (part / "tokenizer.json").write_text(json.dumps(vocabulary(shape)[0], ensure_ascii=False))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, part / name)
    weights, header, end = Weights(shape), {"__metadata__": {"format": "pt"}}, 0
    for name, size in tensors(shape):
        begin, end = end, end + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with (part / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, size in tensors(shape):
            weights.bf16(name, size).tofile(file)
    part.rename(folder)


GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}


def gguf_name(name):
    """What GGUF calls a tensor."""
    for found, said in GGUF_NAMES.items():
        name = name.replace(found, said)
    return name


def interleaved(values, shape, name):
    """llama.cpp turns neighbours where the Hub's Llama turns halves: rows of queries and keys change places."""
    heads = {"q_proj": shape["heads"], "k_proj": shape["kv_heads"]}
    found = [count for part, count in heads.items() if part in name]
    if shape["family"] != "llama" or not found:
        return values
    rows = values.reshape(found[0], 2, shape["head_width"] // 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


def write_gguf(shape, path, kind):
    """A GGUF file of the same weights, of kind bf16, q8_0 or q4_0; needs the package gguf."""
    if path.exists():
        return
    import gguf

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(part, shape["family"], use_temp_file=False)
    writer.add_name(f"random {shape['like']}")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_rope_dimension_count(shape["head_width"])
    writer.add_vocab_size(shape["vocabulary"])
    tokenizer, tokens = vocabulary(shape)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in special else normal for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    quantized = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0,
                 "q4_0": gguf.GGMLQuantizationType.Q4_0}[kind]
    file_types = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
                  "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}
    writer.add_file_type(file_types[kind])
    plain = gguf.GGMLQuantizationType.F32
    names = list(tensors(shape))
    for name, size in names:
        of = plain if len(size) == 1 else quantized
        stored = size if of is plain else gguf.quant_shape_to_byte_shape(size, of)
        count = int(np.prod(stored)) * (4 if of is plain else 1)
        dtype = np.dtype(np.float32) if of is plain else np.dtype(np.uint8)
        writer.add_tensor_info(gguf_name(name), stored, dtype, count, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    weights = Weights(shape)
    for name, size in names:
        bits = interleaved(weights.bf16(name, size), shape, name)
        if len(size) > 1 and kind == "bf16":
            writer.write_tensor_data(bits.view(np.uint8))
            continue
        values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        writer.write_tensor_data(values if len(size) == 1 else gguf.quants.quantize(values, quantized))
    writer.close()
    part.rename(path)


if __name__ == "__main__":
    import sys

    write_gguf(SHAPES[sys.argv[1]], Path(sys.argv[3]), sys.argv[2])
