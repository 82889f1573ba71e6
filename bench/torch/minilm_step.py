"""The same step in plain PyTorch, computed as transformers and peft compute it: padded batches, eager attention, the base's and
the adapter's products apart, AdamW over the adapter and the head. Needs torch alone.

    python bench/torch/minilm_step.py MODEL_FOLDER BATCHES.json [--threads 2 --skip 5 --dtype float32]
"""
import argparse
import json
import resource
import struct
import time

import torch
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, RANK, SCALE = 6, 384, 12, 8, 2.0


def read(path, dtype):
    """Tensors of a safetensors file."""
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
    tensors = {}
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or "F" not in info["dtype"]:
            continue
        start, end = info["data_offsets"]
        flat = torch.frombuffer(bytearray(data[8 + size + start : 8 + size + end]), dtype=kinds[info["dtype"]])
        tensors[name] = flat.reshape(info["shape"]).to(dtype)
    return tensors


class Model:
    def __init__(self, folder, dtype):
        self.w = read(f"{folder}/model.safetensors", dtype)
        self.lora = {}
        for name, weight in list(self.w.items()):
            if not name.endswith(".weight") or not any(p in name for p in ("query", "key", "value", "dense")):
                continue
            out, inner = weight.shape
            a = torch.nn.Parameter(torch.empty(RANK, inner).uniform_(-(inner**-0.5), inner**-0.5))
            b = torch.nn.Parameter(torch.zeros(out, RANK))
            self.lora[name[: -len(".weight")]] = (a, b)
        self.head = torch.nn.Linear(WIDTH, 2)

    def parameters(self):
        return [p for pair in self.lora.values() for p in pair] + list(self.head.parameters())

    def linear(self, name, x):
        y = F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])
        a, b = self.lora[name]
        return y + (F.linear(F.linear(x.to(a.dtype), a), b) * SCALE).to(y.dtype)

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
        return self.head(torch.tanh(self.linear("pooler.dense", x[:, 0])).float())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("batches")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--skip", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Model(options.model, getattr(torch, options.dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    seconds, tokens = [], 0
    for i, batch in enumerate(json.load(open(options.batches))):
        longest = max(map(len, batch["ids"]))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch["ids"]])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch["ids"]])
        begun = time.perf_counter()
        loss = F.cross_entropy(model.forward(ids, mask), torch.tensor(batch["labels"]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if i >= options.skip:
            seconds.append(time.perf_counter() - begun)
            tokens += int(mask.sum())
    seconds.sort()
    print(
        json.dumps(
            {
                "what": f"torch {torch.__version__} lora {options.dtype}",
                "threads": torch.get_num_threads(),
                "medianSeconds": seconds[len(seconds) // 2],
                "minSeconds": seconds[0],
                "meanTokens": tokens / len(seconds),
                "peakRssMiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
