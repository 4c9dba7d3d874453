"""A Llama of the given shape in PyTorch, trained on random tokens; prints tokens per second as JSON.

Written as one would write it: torch.nn modules, plain attention, AdamW. Run by scripts/bench-train-torch.
"""

import argparse
import json
import math
import time

import torch
from torch import nn
from torch.nn import functional


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def turn(x, cos, sin):
    """Rotary positions; x: [batch, heads, tokens, head size]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.kv_heads, self.head = shape.heads, shape.kv_heads, shape.dim // shape.heads
        kv = self.kv_heads * self.head
        self.attn_norm, self.ffn_norm = RmsNorm(shape.dim), RmsNorm(shape.dim)
        self.q, self.k, self.v = (nn.Linear(shape.dim, n, bias=False) for n in (shape.dim, kv, kv))
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.gate, self.up = (nn.Linear(shape.dim, shape.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.ffn, shape.dim, bias=False)

    def attention(self, x, cos, sin, mask):
        batch, tokens, dim = x.shape
        def heads(y, n):
            return y.view(batch, tokens, n, self.head).transpose(1, 2)
        q = turn(heads(self.q(x), self.heads), cos, sin)
        k = turn(heads(self.k(x), self.kv_heads), cos, sin)
        v = heads(self.v(x), self.kv_heads)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if hasattr(functional, "scaled_dot_product_attention"):
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(self.head) + mask
            y = functional.softmax(scores, -1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, dim))

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(self.attn_norm(x), cos, sin, mask)
        y = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.dim)
        head = shape.dim // shape.heads
        frequencies = 10000.0 ** (-torch.arange(0, head, 2) / head)
        angles = torch.arange(shape.context)[:, None] * frequencies
        self.cos, self.sin = angles.cos(), angles.sin()
        self.mask = torch.full((shape.context, shape.context), -math.inf).triu(1)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, self.mask)
        return functional.linear(self.norm(x), self.embedding.weight)  # Tied.


def blas_library():
    """The file that multiplies matrices: "openblas-pthread/libblas.so.3", or the reference in "blas/"."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "blas" in line or "mkl" in line}
    return ", ".join(sorted("/".join(path.split("/")[-2:]) for path in paths)) or "its own"


def main():
    parser = argparse.ArgumentParser()
    for name in ("layers", "dim", "ffn", "heads", "kv-heads", "vocab", "context", "batch", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    shape = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(shape.threads)
    model = Llama(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    begin = 0.0
    for step in range(shape.steps + 2):
        if step == 2:  # The first steps allocate.
            begin = time.perf_counter()
        ids = torch.randint(shape.vocab, (shape.batch, shape.context + 1))
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    seconds = time.perf_counter() - begin
    print(json.dumps({"tokens_per_second": shape.steps * shape.batch * shape.context / seconds,
                      "n_params": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
                      "blas": blas_library()}))


if __name__ == "__main__":
    main()
