#!/usr/bin/env python3
"""Training in the embedded engine beside PyTorch, eager and compiled, on the same cores.

Every contender is a process that trains one step when it is told to. They take turns, step by
step, so that other load on the machine falls on all of them; a row's figure is the best step of
each, beside it tokens per CPU-second, which other load disturbs least. Rows whose steps take many
seconds get fewer of them. PyTorch is installed into a virtual environment (--venv, the same as
engine_sample_peers.py's) where the interpreter has none.

    cargo build --release -p patchwright-engine --example train_bench
    python3 bench/engine_train_peers.py [--rows train-5.8m-8x512-f32,…] [--steps 5] [--json]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    "train-5.8m-8x512-f32",
    "train-5.8m-8x512-bf16",
    "train-5.8m-1x2048-f32",
    "train-5.8m-1x8192-f32",
    "train-smollm2-1x2048-f32",
]
# hidden, layers, heads, key/value heads, feed-forward, vocabulary
SHAPES = {
    "1m": (128, 5, 4, 2, 384, 600),
    "5.8m": (256, 6, 4, 2, 768, 4096),
    "smollm2": (576, 30, 9, 3, 1536, 49152),
}
THREADS = 2
# Steps, and PyTorch's before them, of rows that are slow.
FEW_STEPS = {"train-5.8m-1x8192-f32": (2, 1), "train-smollm2-1x2048-f32": (2, 1)}


def parse(row):
    """The parts of a row's name: shape, sequences, their length, precision."""
    _, shape, batch, precision = row.split("-")
    count, length = batch.split("x")
    return SHAPES[shape], int(count), int(length), precision


def operations(row):
    """Floating-point operations of a token: products and attention, forward and backward."""
    (hidden, layers, heads, kv_heads, ffn, vocab), _, length, _ = parse(row)
    dim = hidden // heads
    matrices = layers * hidden * (2 * hidden + 2 * kv_heads * dim + 3 * ffn) + vocab * hidden
    # Half of the keys are masked; forward takes two products, backward five.
    attention = layers * 7 * length * hidden
    return 6 * matrices + attention


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve_torch(row, mode):
    """The contender's process: a step for every line of input."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    (hidden, layers, heads, kv_heads, ffn, vocab), count, length, precision = parse(row)
    dim = hidden // heads

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_norm = nn.RMSNorm(hidden, eps=1e-6)
            self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * dim, bias=False)
            self.output = nn.Linear(hidden, hidden, bias=False)
            self.post_norm = nn.RMSNorm(hidden, eps=1e-6)
            self.gate_up = nn.Linear(hidden, 2 * ffn, bias=False)
            self.down = nn.Linear(ffn, hidden, bias=False)

        def forward(self, x, cos, sin):
            q, k, v = self.qkv(self.input_norm(x)).split(
                [heads * dim, kv_heads * dim, kv_heads * dim], dim=-1
            )
            q, k, v = (t.unflatten(-1, (-1, dim)).transpose(1, 2) for t in (q, k, v))

            def rotate(t):
                first, second = t.chunk(2, dim=-1)
                return t * cos + torch.cat((-second, first), dim=-1) * sin

            q, k = rotate(q), rotate(k)
            attended = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True, enable_gqa=True)
            x = x + self.output(attended.transpose(1, 2).flatten(2))
            gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab, hidden)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.norm = nn.RMSNorm(hidden, eps=1e-6)
            frequencies = 10_000.0 ** (-torch.arange(0, dim, 2).float() / dim)
            angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

        def forward(self, tokens):
            x = self.embedding(tokens)
            cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
            for layer in self.layers:
                x = layer(x, cos, sin)
            logits = F.linear(self.norm(x), self.embedding.weight)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())

    model = Decoder()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    run = torch.compile(model) if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, vocab, (count, length))

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = run(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def gemm():
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(1536, 1536, dtype=dtype), torch.randn(1536, 1536, dtype=dtype)
        best = 1e9
        for _ in range(5):
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
        return 2 * 1536**3 / best / 1e9

    for _ in range(FEW_STEPS.get(row, (0, 2))[1]):
        step()
    print("ready", count * length, flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            started, cpu = time.perf_counter(), cpu_seconds()
            step()
            print(time.perf_counter() - started, cpu_seconds() - cpu, flush=True)
        elif line.strip() == "gemm":
            print(gemm(), flush=True)
        else:
            break
    print(peak_bytes(), flush=True)


class Contender:
    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tokens = int(self.answer().split()[1])
        self.wall, self.cpu = float("inf"), float("inf")
        self.gemm = 0.0
        self.peak = 0

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; its last words are above")
        return line

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return [float(x) for x in self.answer().split()]

    def step(self):
        wall, cpu = self.ask("step")
        self.wall, self.cpu = min(self.wall, wall), min(self.cpu, cpu)

    def end(self):
        self.peak = int(self.ask("end")[0])
        self.process.wait()

    def figures(self, row):
        speed = self.tokens / self.wall
        return {
            "tokens_per_second": round(speed, 1),
            "tokens_per_cpu_second": round(self.tokens / max(self.cpu, 1e-9), 1),
            "peak_bytes": self.peak,
            "gflops": round(speed * operations(row) / 1e9, 1),
            "gemm_peak_gflops": round(self.gemm, 1),
        }


def measure(row, python, ours, steps, modes):
    steps = min(steps, FEW_STEPS.get(row, (steps, 0))[0])
    contenders = [Contender("patchwright", [ours, row])]
    for mode in modes:
        command = [python, __file__, "--serve", row, mode]
        contenders.append(Contender(f"torch {mode}", command))
    for _ in range(steps):
        for contender in contenders:
            contender.step()
        for contender in contenders:
            contender.gemm = max(contender.gemm, contender.ask("gemm")[0])
    for contender in contenders:
        contender.end()
    result = {contender.name: contender.figures(row) for contender in contenders}
    own, peers = result["patchwright"], [v for k, v in result.items() if k != "patchwright"]
    for key in ("tokens_per_second", "tokens_per_cpu_second"):
        result[f"ratio_{key}"] = round(own[key] / max(peer[key] for peer in peers), 3)
    result["ratio_peak_bytes"] = round(own["peak_bytes"] / min(p["peak_bytes"] for p in peers), 3)
    peak = max(value["gemm_peak_gflops"] for value in [own, *peers])
    result["share_of_gemm_peak"] = round(own["gflops"] / peak, 3)
    return result


def python_with_torch(given, place, packages):
    """An interpreter that has PyTorch: the given one, this one, or that of a new environment."""
    python = Path(place) / "bin" / "python"
    candidates = [given] if given else [sys.executable, python]
    for candidate in filter(lambda candidate: Path(candidate).exists(), candidates):
        check = subprocess.run([candidate, "-c", "import torch"], capture_output=True, check=False)
        if check.returncode == 0:
            return str(candidate)
    if given:
        raise SystemExit(f"{given} has no PyTorch; leave --python out to install it")
    if not python.exists():
        venv.create(place, with_pip=True)
    print(f"installing {', '.join(packages)} into {place}", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="rows, with commas between")
    parser.add_argument("--steps", type=int, default=5, help="steps of each contender, at most")
    parser.add_argument("--modes", default="eager,compiled", help="PyTorch's, with commas between")
    parser.add_argument("--python", help="an interpreter that has PyTorch")
    parser.add_argument("--venv", default=str(ROOT / "target/bench-venv"))
    parser.add_argument("--ours", default=str(ROOT / "target/release/examples/train_bench"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("ROW", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_torch(*arguments.serve)
        return
    if not Path(arguments.ours).exists():
        raise SystemExit(
            f"{arguments.ours} is missing; run "
            "`cargo build --release -p patchwright-engine --example train_bench`"
        )
    python = python_with_torch(arguments.python, arguments.venv, ["torch", "numpy"])
    results = {}
    for row in arguments.rows.split(","):
        modes = arguments.modes.split(",")
        results[row] = measure(row, python, arguments.ours, arguments.steps, modes)
        if not arguments.json:
            print(row)
            for name, value in results[row].items():
                print(f"  {name}: {json.dumps(value)}", flush=True)
    if arguments.json:
        print(json.dumps({"rows": results}, indent=2))


if __name__ == "__main__":
    main()
