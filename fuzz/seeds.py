"""Writes the inputs that the fuzzer begins with and that are no text, into corpus/ beside this file."""

import json
import pathlib
import struct
import zlib

CORPUS = pathlib.Path(__file__).parent / "corpus"


def write(name: str, data: bytes) -> None:
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def journal() -> None:
    stream = bytes(range(16))
    logprobs = struct.pack("<If", 97, -0.5) + struct.pack("<IIf", 1, 98, float("-inf"))
    request = b"\x01" + text(b"a key") + text(b"/generate_stream")
    request += struct.pack("<I", 1) + text(b"content-type") + text(b"application/json") + text(b'{"inputs": "a"}')
    prompts = struct.pack("<I", 1) + text(b"a") + struct.pack("<II", 1, 97)
    heard = b"\x02" + stream + struct.pack("<I", 0)
    payloads = [
        b"\x01" + stream * 2 + struct.pack("<QQQ", 1, 2, 3) + request + prompts + text(b"test"),
        heard + b"\x01" + struct.pack("<QI", 2000, 0),
        heard + b"\x02" + struct.pack("<I", 1) + logprobs,
        heard + b"\x03" + logprobs + text(b"a") + text(b"a") + b"\x00\x03",
        heard + b"\x04",
        b"\x03" + stream,
    ]
    frames = [struct.pack("<II", len(payload), zlib.crc32(payload)) + payload for payload in payloads]
    write("journal/segment", b"LSJRNL01" + b"".join(frames))
    for index, payload in enumerate(payloads):
        write(f"journal/payload-{index}", payload)


def safetensors() -> None:
    shapes = {"model.embed_tokens.weight": [8, 8], "model.norm.weight": [8], "lm_head.weight": [8, 8]}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    write("safetensors/tiny", struct.pack("<Q", len(encoded)) + encoded + bytes(at))


def gguf() -> None:
    def string(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return string(name) + struct.pack("<I", kind) + value

    def unsigned(name: str, value: int) -> bytes:
        return key(name, 4, struct.pack("<I", value))

    def array(name: str, kind: int, values: list[bytes]) -> bytes:
        return key(name, 9, struct.pack("<IQ", kind, len(values)) + b"".join(values))

    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    keys = [
        key("general.architecture", 8, string("llama")),
        unsigned("llama.embedding_length", 8),
        unsigned("llama.feed_forward_length", 8),
        unsigned("llama.block_count", 1),
        unsigned("llama.attention.head_count", 2),
        unsigned("llama.attention.head_count_kv", 1),
        unsigned("llama.context_length", 16),
        key("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        key("tokenizer.ggml.model", 8, string("llama")),
        array("tokenizer.ggml.tokens", 8, [string(token) for token in tokens]),
        array("tokenizer.ggml.scores", 6, [struct.pack("<f", -place) for place in range(6)]),
        array("tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for kind in (2, 3, 3, 1, 1, 1)]),
        unsigned("tokenizer.ggml.bos_token_id", 1),
        unsigned("tokenizer.ggml.eos_token_id", 2),
    ]
    tensor = string("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 6, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    write("gguf/tiny", head + bytes(-len(head) % 32 + 192))


def protobuf() -> None:
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    def varint(number: int, value: int) -> bytes:
        return bytes([number << 3, value])

    start = varint(1, 1) + field(2, b"") + field(3, b"\x05\x06") + varint(4, 1)
    work = varint(1, 1) + varint(2, 0) + field(3, b"\x05\x06") + field(4, b"\x04")
    write("protobuf/step", b"\x00" + varint(1, 2) + varint(2, 9) + field(3, start) + field(4, work))
    result = varint(1, 1) + field(2, varint(1, 4))
    write("protobuf/output", b"\x01" + varint(1, 2) + varint(2, 9) + field(3, result))
    write("protobuf/shard", b"\x02" + varint(1, 1) + varint(2, 2) + varint(3, 3) + varint(7, 9))


if __name__ == "__main__":
    journal()
    safetensors()
    gguf()
    protobuf()
