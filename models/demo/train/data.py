"""Pack documents into rows of token ids.

Documents are never cut: rows are filled with whole documents, and what is left at the end of a
row is padding without loss. Attention is not masked between the documents of a row; the end
mark tells the model to start afresh.
"""

import numpy as np
import torch

END, START = 0, 1  # the ids of <|endoftext|> and <|im_start|>


def encode(tokenizer, texts):
    """Token ids of documents, each with the end mark."""
    return [encoding.ids + [END] for encoding in tokenizer.encode_batch(texts)]


def pack(documents, length, rng):
    """Rows of length + 1 ids (int16), and how many ids of each row are not padding."""
    rows, pool, source = [], [], iter(documents)
    exhausted = False
    while pool or not exhausted:
        row = [END] if rng.random() < 0.5 else []
        while True:
            while len(pool) < 128 and not exhausted:
                document = next(source, None)
                exhausted = document is None
                if document is not None and len(document) <= length:
                    pool.append(document)
            room = length + 1 - len(row)
            fitting = [i for i, document in enumerate(pool) if len(document) <= room]
            if not fitting:
                break
            # any document while there is room, then the longest that still fits
            pick = fitting[0] if room > 200 else max(fitting, key=lambda i: len(pool[i]))
            row += pool.pop(pick)
        rows.append(row)
    table = np.full((len(rows), length + 1), END, dtype=np.int16)
    used = np.zeros(len(rows), dtype=np.int32)
    for index, row in enumerate(rows):
        table[index, :len(row)] = row
        used[index] = len(row)
    order = np.array(rng.sample(range(len(rows)), len(rows)))
    return table[order], used[order]


def loss_weights(row, assistant, asked_weight):
    """One weight per id: in chats, what is not a turn of the assistant counts for less."""
    weights = np.ones(len(row), dtype=np.float32)
    asked, until = False, 0
    for index, token in enumerate(row):
        if token == END:
            asked = False
        elif token == START:
            asked = index + 1 >= len(row) or row[index + 1] != assistant
            until = index + 2  # the mark and the role are given, too
        if asked or index <= until and token != END:
            weights[index] = asked_weight
    return weights


def batch(table, used, start, count, assistant, asked_weight):
    """Inputs, targets and the targets' weights of some rows."""
    rows = table[start:start + count]
    weights = np.stack([loss_weights(row, assistant, asked_weight) for row in rows.tolist()])
    weights[np.arange(rows.shape[1])[None, :] >= used[start:start + count, None]] = 0.0
    ids = torch.from_numpy(rows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:], torch.from_numpy(weights[:, 1:])
