"""A LoRA step of MiniLM on SST-2 in plain PyTorch, to be timed beside balora (the row minilm-sst2 of its benchmark), in f32.

Computed as transformers and peft compute it: padded batches, eager attention, the base's and the adapter's products apart, AdamW
over the adapter and the head. It needs torch alone: transformers and peft add their own memory and some hooks around the same
products, so that the comparison is the harder one for balora.

    python minilm_step.py FOLDER [--rank 8 --warmup 5 --steps 20 --threads 2 --device cpu]

FOLDER holds model.safetensors (bert) and batches.json: a list of micro-batches {"ids": [[...], ...], "labels": [...]}. One line
of JSON comes out.
"""
import argparse
import json
import resource
import struct
import time

import torch
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, SCALE = 6, 384, 12, 2.0


def read(path):
    """Tensors of a safetensors file in f32, named as a bert without a head names them."""
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
    tensors = {}
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or "F" not in info["dtype"]:
            continue
        start, end = info["data_offsets"]
        flat = torch.frombuffer(bytearray(data[8 + size + start : 8 + size + end]), dtype=kinds[info["dtype"]])
        tensors[name.removeprefix("bert.")] = flat.reshape(info["shape"]).float().to(torch.get_default_device())
    return tensors


class Model:
    def __init__(self, folder, rank):
        self.w = read(f"{folder}/model.safetensors")
        self.lora = {}
        for name, weight in list(self.w.items()):
            if not name.endswith(".weight") or not any(p in name for p in ("query", "key", "value", "dense")):
                continue
            out, inner = weight.shape
            a = torch.nn.Parameter(torch.empty(rank, inner).uniform_(-(inner**-0.5), inner**-0.5))
            b = torch.nn.Parameter(torch.zeros(out, rank))
            self.lora[name[: -len(".weight")]] = (a, b)
        self.head = torch.nn.Linear(WIDTH, 2)

    def parameters(self):
        return [p for pair in self.lora.values() for p in pair] + list(self.head.parameters())

    def linear(self, name, x):
        y = F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])
        a, b = self.lora[name]
        return y + F.linear(F.linear(x, a), b) * SCALE

    def norm(self, name, x):
        return F.layer_norm(x, (WIDTH,), self.w[name + ".weight"], self.w[name + ".bias"], 1e-12)

    def forward(self, ids, mask):
        batch, length = ids.shape
        w = self.w
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][:length])
        hide = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask == 0, torch.finfo(x.dtype).min)[:, None, None]
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}."
            q, k, v = (
                self.linear(f"{at}attention.self.{p}", x).view(batch, length, HEADS, -1).transpose(1, 2)
                for p in ("query", "key", "value")
            )
            scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + hide
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
            x = self.norm(at + "attention.output.LayerNorm", self.linear(at + "attention.output.dense", mixed) + x)
            inner = F.gelu(self.linear(at + "intermediate.dense", x))
            x = self.norm(at + "output.LayerNorm", self.linear(at + "output.dense", inner) + x)
        return self.head(torch.tanh(self.linear("pooler.dense", x[:, 0])))


def peak_bytes():
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    model = Model(options.folder, options.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    with open(f"{options.folder}/batches.json") as file:
        batches = json.load(file)
    seconds, tokens, losses = [], [], []
    for i in range(options.warmup + options.steps):
        batch = batches[i % len(batches)]
        longest = max(map(len, batch["ids"]))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch["ids"]])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch["ids"]])
        begun = time.perf_counter()
        loss = F.cross_entropy(model.forward(ids, mask), torch.tensor(batch["labels"]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
        tokens.append(int(mask.sum()))
    result = {"seconds": seconds[options.warmup :], "tokens": tokens[options.warmup :], "losses": losses}
    print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "peakBytes": peak_bytes(), **result}))


if __name__ == "__main__":
    main()
