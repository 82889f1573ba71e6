"""The BA-LoRA recipe in PyTorch, to be timed beside balora on the same weights and the same micro-batches.

Computed the way transformers and peft compute it: the base product and the low-rank products one after the other, adapters in
f32 on a base of the row's dtype, rows padded to the longest of a micro-batch, a second copy of the model as teacher, the
logits of every position for both, the regularizers on those logits. PiSSA moves the base to its residual.

    python recipe.py FOLDER --job step --method balora --rank 16 --dtype bf16 --steps 3
    python recipe.py FOLDER --job pissa --rank 16 --niter 16

FOLDER holds config.json and model.safetensors (llama, Hugging Face names) and, for steps, batches.json: a list of
micro-batches, each a list of {"ids": [...], "labels": [...]} with -100 where a token is not supervised. One line of JSON comes out.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import struct
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
COMPUTE = {"bf16": torch.bfloat16, "f32": torch.float32}
TEMPERATURE, TOP_K, SVD_K, SVD_OVERSAMPLE = 2.0, 20, 10, 5
WEIGHTS = {"consistency": 0.025, "diversity": 0.005, "svd": 0.005}


def read_safetensors(path):
    """name -> tensor; the format is 8 bytes of length, a JSON header, then the data."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        count = (end - begin) // dtype.itemsize
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=begin)
        tensors[name] = flat.reshape(entry["shape"]).to(torch.get_default_device(), copy=True)
    return tensors


class RMSNorm(nn.Module):
    def __init__(self, weight, eps):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Linear(nn.Module):
    """A frozen linear that an adapter may be added to."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.a = self.b = None

    def adapt(self, rank, niter):
        """niter None: exact PiSSA; a number: randomized PiSSA; 'zero': plain LoRA."""
        outputs, inputs = self.weight.shape
        if niter == "zero":
            a = torch.empty(rank, inputs).uniform_(-1, 1) / math.sqrt(inputs)
            b = torch.zeros(outputs, rank)
        else:
            a, b, _ = pissa(self.weight, rank, niter)
            self.weight.data = (self.weight.float() - b @ a).to(self.weight.dtype)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x):
        y = F.linear(x, self.weight)
        if self.a is None:
            return y
        update = F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)
        return y + update.to(y.dtype)


def random_tensors(config, dtype):
    """Weights of config.json's shape without a file, for shapes whose files would be too large to write."""
    c, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config.get("head_dim") or c // config["num_attention_heads"]
    heads, groups = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens.weight": (v, c), "model.norm.weight": (c,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (v, c)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, shape in {"q": (heads, c), "k": (groups, c), "v": (groups, c), "o": (c, heads)}.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (f, c), "up": (f, c), "down": (c, f)}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (c,)
    make = lambda shape: torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
    return {name: make(shape).to(dtype) for name, shape in shapes.items()}


def pissa(weight, rank, niter):
    """A, B and the captured squared norm of a weight's leading part."""
    wide = weight.float()
    if niter is None:
        u, s, vt = torch.linalg.svd(wide, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, v = torch.svd_lowrank(wide, q=rank, niter=niter)
        vt = v.t()
    root = s.sqrt()
    return root[:, None] * vt, u * root, s.double().square().sum().item()


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Attention(nn.Module):
    def __init__(self, config, take):
        super().__init__()
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config.get("head_dim") or config["hidden_size"] // self.heads
        self.q, self.k, self.v, self.o = (Linear(take(f"self_attn.{n}_proj.weight")) for n in "qkvo")

    def forward(self, x, rope, mask):
        batch, length, _ = x.shape
        split = lambda y, heads: y.view(batch, length, heads, self.size).transpose(1, 2)
        q = rotate(split(self.q(x), self.heads), *rope)
        k = rotate(split(self.k(x), self.groups), *rope)
        v = split(self.v(x), self.groups)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(y.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, config, take):
        super().__init__()
        eps = config.get("rms_norm_eps", 1e-6)
        self.before = RMSNorm(take("input_layernorm.weight"), eps)
        self.after = RMSNorm(take("post_attention_layernorm.weight"), eps)
        self.attention = Attention(config, take)
        self.gate, self.up, self.down = (Linear(take(f"mlp.{n}_proj.weight")) for n in ("gate", "up", "down"))

    def forward(self, x, rope, mask):
        x = x + self.attention(self.before(x), rope, mask)
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, config, tensors, dtype):
        super().__init__()
        take = lambda name: tensors[name].to(dtype, copy=True)
        self.config = config
        self.embedding = nn.Parameter(take("model.embed_tokens.weight"), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(config, lambda name, at=f"model.layers.{i}.": take(at + name))
            for i in range(config["num_hidden_layers"])
        )
        self.norm = RMSNorm(take("model.norm.weight"), config.get("rms_norm_eps", 1e-6))
        tied = "lm_head.weight" not in tensors
        self.head = self.embedding if tied else nn.Parameter(take("lm_head.weight"), requires_grad=False)

    def adapt(self, rank, niter):
        for module in self.modules():
            if isinstance(module, Linear):
                module.adapt(rank, niter)
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, ids, padding):
        length = ids.shape[1]
        x = F.embedding(ids, self.embedding)
        size = self.blocks[0].attention.size
        theta = (self.config.get("rope_parameters") or self.config).get("rope_theta") or 1e4
        frequency = 1 / theta ** (torch.arange(0, size, 2).float() / size)
        angle = torch.outer(torch.arange(length).float(), frequency).repeat(1, 2)
        rope = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        mask = None
        if padding is not None:  # as transformers does once a micro-batch is padded
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            mask = causal[None, None] & padding[:, None, None, :]
        for block in self.blocks:
            x = block(x, rope, mask)
        return F.linear(self.norm(x), self.head)


def regularizers(student, teacher, chosen):
    """Consistency, diversity and SVD terms on the logits of every position; `chosen` marks the supervised ones."""
    log_q = F.log_softmax(student / TEMPERATURE, -1)
    p = F.softmax(teacher / TEMPERATURE, -1)
    divergence = F.kl_div(log_q, p, reduction="none").sum(-1)
    consistency = (divergence * chosen).sum() / chosen.sum() * TEMPERATURE**2
    rows = student[chosen]
    log_pi = F.log_softmax(rows.topk(TOP_K, -1).values, -1)
    diversity = (log_pi.exp() * log_pi).sum(-1).mean()
    wide = rows.float()
    _, sigma, _ = torch.svd_lowrank(wide, q=SVD_K + SVD_OVERSAMPLE, niter=2)
    svd = -sigma[:SVD_K].sum() / torch.linalg.matrix_norm(wide)
    return WEIGHTS["consistency"] * consistency + WEIGHTS["diversity"] * diversity + WEIGHTS["svd"] * svd


def collate(rows):
    """A micro-batch padded to its longest row."""
    longest = max(len(row["ids"]) for row in rows)
    pad = lambda values, fill: values + [fill] * (longest - len(values))
    ids = torch.tensor([pad(row["ids"], 0) for row in rows])
    labels = torch.tensor([pad(row["labels"], -100) for row in rows])
    padding = torch.tensor([pad([True] * len(row["ids"]), False) for row in rows])
    return ids, labels, None if padding.all() else padding


def micro_batch_loss(model, teacher, ids, labels, padding):
    logits = model(ids, padding)
    vocabulary = logits.shape[-1]
    shifted = logits[:, :-1].reshape(-1, vocabulary).float()
    loss = F.cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=-100)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(ids, padding)
        loss = loss + regularizers(logits, target, labels != -100)
    return loss


def peak_bytes():
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wait():
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def run_steps(args, config, tensors):
    dtype = COMPUTE[args.dtype]
    model = Llama(config, tensors, dtype)
    teacher = Llama(config, tensors, dtype).eval() if args.method == "balora" else None
    tensors.clear()
    parameters = model.adapt(args.rank, 1 if args.method == "balora" else "zero")
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0)
    with open(os.path.join(args.folder, "batches.json")) as file:
        batches = [collate(rows) for rows in json.load(file)]
    seconds, tokens, losses, at = [], [], [], 0
    for _ in range(args.warmup + args.steps):
        begun, count, total = time.perf_counter(), 0, 0.0
        for _ in range(args.accumulation):
            ids, labels, padding = batches[at % len(batches)]
            at += 1
            loss = micro_batch_loss(model, teacher, ids, labels, padding) / args.accumulation
            loss.backward()
            total += loss.item()
            count += ids.numel() if padding is None else int(padding.sum())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        seconds.append(time.perf_counter() - begun)
        tokens.append(count)
        losses.append(total)
    return {"seconds": seconds[args.warmup :], "tokens": tokens[args.warmup :], "losses": losses}


def run_pissa(args, config, tensors):
    niter = None if args.niter == "exact" else int(args.niter)
    names = [f"{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")]
    weights = [w.to(COMPUTE[args.dtype]) for name, w in tensors.items() if any(name.endswith(n) for n in names)]
    seconds = []
    for _ in range(args.warmup + args.steps):
        begun = time.perf_counter()
        captured = sum(pissa(weight, args.rank, niter)[2] for weight in weights)
        wait()
        seconds.append(time.perf_counter() - begun)
    whole = sum(weight.double().square().sum().item() for weight in weights)
    return {"seconds": seconds[args.warmup :], "capturedEnergy": captured / whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--job", choices=["step", "pissa"], default="step")
    parser.add_argument("--method", choices=["balora", "lora"], default="balora")
    parser.add_argument("--dtype", choices=list(COMPUTE), default="bf16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--niter", default="16", help="a number, or exact")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--random", action="store_true", help="weights of config.json's shape without model.safetensors")
    parser.add_argument(
        "--attention",
        choices=["own", "plain"],
        default="own",
        help="PyTorch's choice, or plain products: its fused kernel in bf16 is slow on a CPU where PyTorch was built without MKL",
    )
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    with open(os.path.join(args.folder, "config.json")) as file:
        config = json.load(file)
    torch.set_default_device(args.device)
    if args.random:
        tensors = random_tensors(config, COMPUTE[args.dtype])
    else:
        tensors = read_safetensors(os.path.join(args.folder, "model.safetensors"))
    with sdpa_kernel(SDPBackend.MATH) if args.attention == "plain" else contextlib.nullcontext():
        result = (run_steps if args.job == "step" else run_pissa)(args, config, tensors)
    print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "peakBytes": peak_bytes(), **result}))


main()
