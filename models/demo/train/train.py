"""Train the demo model from scratch on the CPU and export it as bf16 safetensors.

Usage: python train.py [--work FOLDER] [--output FOLDER] [--resume]

The number of steps is fixed, so that two runs see the same data and the same learning rates.
Phase one trains on rows of 512 tokens; phase two on rows of 2,048 tokens, many of them chats of
many turns, so that all positions of the context are used. Two processes of one thread each share
every batch and average their gradients. --resume goes on from the last checkpoint.
"""

import argparse
import json
import math
import os
import pathlib
import random
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from tokenizers import Tokenizer

import corpus
import data
import evaluate
import held_out
from model import Config, Llama

HERE = pathlib.Path(__file__).resolve().parent
RANKS = 2
SEED = 20
BATCH_TOKENS = 4096
# the length of the rows, and the step up to which it is used
PHASES = ((512, 1580), (2048, 1640), (2048, 1895))
# two cycles of the learning rate: last step, peak, steps of warm-up and of decay
CYCLES = ((1640, 2e-3, 60, 330), (1895, 1.5e-3, 20, 235))
TOTAL_STEPS, WEIGHT_DECAY = 1895, 0.1
# after the first steps, what the user and the system line say counts for less in the loss
EQUAL_STEPS, ASKED_WEIGHT = 500, 0.2
BLOCK = 100  # steps whose data is made at a time
EVALUATE_EVERY, SAVE_EVERY = 250, 50


def rate(step):
    """Linear warm-up, a constant rate, then a cosine down to one hundredth of the peak."""
    begin = 0
    for end, peak, warm_up, decay in CYCLES:
        if step < end:
            break
        begin = end
    if step - begin < warm_up:
        return peak * (step - begin + 1) / warm_up
    left = min(1.0, (end - step) / decay)
    return peak * (0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * left)))


def make_rows(tokenizer, length, steps, seed, unseen):
    """Packed rows for some steps, checked against the held-out prompts."""
    rng = random.Random(seed)
    wanted, size, texts, parts = steps * BATCH_TOKENS * 1.02, 0, [], []
    while size < wanted:
        fresh = corpus.documents(rng.random(), 600)
        if length > 512:
            fresh = fresh[:300] + corpus.long_documents(rng.random(), 60)
            rng.shuffle(fresh)
        fresh = [text for text in fresh if not held_out.occurs(unseen, text)]
        encoded = data.encode(tokenizer, fresh)
        size += sum(len(ids) for ids in encoded if len(ids) <= length)
        texts += fresh
        parts += encoded
    held_out.assert_unseen(unseen, texts)
    table, used = data.pack(parts, length, rng)
    assert len(table) * length >= steps * BATCH_TOKENS
    return table, used


def make_optimizers(model):
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name]
    embedding = [w for name, w in model.named_parameters() if "embed" in name]
    norms = [w for w in model.parameters() if w.dim() == 1]
    muon = torch.optim.Muon(matrices, lr=CYCLES[0][1], weight_decay=WEIGHT_DECAY, momentum=0.95,
                            adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([{"params": embedding, "weight_decay": WEIGHT_DECAY},
                              {"params": norms, "weight_decay": 0.0}],
                             lr=CYCLES[0][1], betas=(0.9, 0.98), fused=True)
    return [muon, adam]


def export(model, folder):
    """Write the configuration and the weights, rounded to bf16, in Hugging Face format."""
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
        "head_dim": c.head_dim, "hidden_act": "silu", "hidden_size": c.hidden_size,
        "initializer_range": 0.02, "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads, "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": None, "rope_theta": c.rope_theta, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": c.vocab_size}
    generation = {"bos_token_id": 0, "do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    weights = {name: w.detach().to(torch.bfloat16).contiguous()
               for name, w in model.named_parameters()}
    fresh = folder / "model.safetensors.new"
    save_file(weights, str(fresh), metadata={"format": "pt"})
    fresh.chmod(0o644)
    fresh.rename(folder / "model.safetensors")


class Trainer:
    """The state of a training run; rank 0 reports and writes files."""

    def __init__(self, rank, model, tokenizer, prompts, work, output):
        self.rank = rank
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.work, self.output = work, output
        self.optimizers = make_optimizers(model)
        self.loss = torch.compile(model.loss, dynamic=False)
        self.step, self.first_step, self.started, self.recent = 0, 0, time.time(), []

    def one_step(self, ids, targets, weights):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(ids, targets, weights)
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.recent.append(loss.item())

    def average_gradients(self):
        """Replace the gradients by their mean over the processes."""
        gradients = [w.grad for w in self.model.parameters()]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= RANKS
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    def report(self):
        if self.rank:
            return
        if self.step % 20 == 0:
            spent = time.time() - self.started
            print(f"step {self.step}/{TOTAL_STEPS} loss {sum(self.recent) / len(self.recent):.4f} "
                  f"{(self.step - self.first_step) * BATCH_TOKENS / spent:.0f} tokens/s {spent / 60:.1f} min", flush=True)
            self.recent = []
        if self.step % SAVE_EVERY == 0 or self.step == TOTAL_STEPS:
            self.save()
            export(self.model, self.output)
        if self.step % EVALUATE_EVERY == 0:
            scores = evaluate.score(self.model, self.tokenizer, self.prompts[::3])
            print("held-out (a third): " + evaluate.summary(scores), flush=True)

    def save(self):
        """Write a checkpoint."""
        state = {"step": self.step, "model": self.model.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        torch.save(state, self.work / "checkpoint.new")
        (self.work / "checkpoint.new").rename(self.work / "checkpoint.pt")

    def restore(self):
        """Go on from the last checkpoint."""
        state = torch.load(self.work / "checkpoint.pt")
        self.step = self.first_step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)

    def phase(self, length, until, unseen):
        """Train on rows of a length until a step is reached."""
        count = BATCH_TOKENS // length // RANKS
        assistant = self.tokenizer.token_to_id("assistant")
        while self.step < until:
            block = self.step // BLOCK
            rows = make_rows(self.tokenizer, length, BLOCK, f"{SEED} {length} {block}", unseen)
            while self.step < until and self.step // BLOCK == block:
                first = (self.step % BLOCK * RANKS + self.rank) * count
                weight = 1.0 if self.step < EQUAL_STEPS else ASKED_WEIGHT
                self.one_step(*data.batch(*rows, first, count, assistant, weight))
                self.report()


def worker(rank, options, prompts):
    """One of the processes; both hold the same weights all the time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS,
                            init_method=f"file://{options.work.resolve()}/meeting-point")
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(HERE.parent / "tokenizer.json"))
    model = Llama(Config(num_hidden_layers=6))
    model.initialise()
    trainer = Trainer(rank, model, tokenizer, prompts, options.work, options.output)
    if options.resume:
        trainer.restore()
    unseen = [item["unseen"] for item in prompts]
    for length, until in PHASES:
        trainer.phase(length, until, unseen)
    if rank == 0:
        scores = evaluate.score(model, tokenizer, prompts)
        print("held-out: " + evaluate.summary(scores), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="/tmp/demo-train", type=pathlib.Path)
    parser.add_argument("--output", default=HERE.parent, type=pathlib.Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "meeting-point").unlink(missing_ok=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    prompts = held_out.load(HERE.parent / "held_out.json")
    mp.spawn(worker, (options, prompts), nprocs=RANKS)


if __name__ == "__main__":
    main()
