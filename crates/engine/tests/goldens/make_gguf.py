"""Makes the GGUF fixtures, and one of several files, that the tests of checkpoints read.

Run after make_goldens.py, with numpy, gguf, torch, transformers and safetensors (the fixtures here
came from gguf 0.19.0 and transformers 5.23.0):

    python make_gguf.py [MODEL]... # all fixtures, or only the files of these models

gguf/dequant.gguf holds a tensor a quantization, of random blocks; gguf/dequant.safetensors what the
gguf package makes of each. gguf/{llama,llama-llama3,qwen2,qwen3}.gguf are the models of
make_goldens.py, as llama.cpp's converter lays them out. sharded/ is qwen2 in bf16, split by transformers.
"""

import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
OUT = HERE / "gguf"
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where a block has its f16 scales, in bytes.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def dequant():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(OUT / "dequant.gguf", "none")
    expected = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        rows, row = 3, max(512, numbers)
        blocks = rng.integers(0, 256, (rows * row // numbers, size), dtype=np.uint8)
        halves = SCALES.get(name, [])
        for at in halves:
            scale = rng.normal(0, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = scale[:, None].view(np.uint8)
        if name == "F16":
            blocks = rng.normal(0, 1, (rows, row)).astype(np.float16).view(np.uint8)
        if name == "BF16":
            f32 = rng.normal(0, 1, (rows, row)).astype(np.float32)
            blocks = (f32.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        data = blocks.reshape(rows, -1)
        expected[name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(rows, row)
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    save_file(expected, OUT / "dequant.safetensors")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weights, heads):
    """As llama.cpp's converter does for the architecture llama."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def model(name):
    config = json.loads((HERE / name / "config.json").read_text())
    architecture = name.split("-")[0]
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if "head_dim" in config and config["head_dim"] != config["hidden_size"] // heads:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = ["<|end|>", "<tool>"] + [chr(65 + i) for i in range(36)] + ["AB", "ABC"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 4] + [1] * 38)
    writer.add_token_merges(["A B", "AB C"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    for tensor, values in load_file(HERE / name / "model.safetensors").items():
        to = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
              "lm_head.weight": "output.weight"}.get(tensor)
        if to is None:
            _, _, layer, rest = tensor.split(".", 3)
            part, suffix = rest.rsplit(".", 1)
            to = f"blk.{layer}.{NAMES[part]}.{suffix}"
            if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                values = interleave(values, heads if "q_proj" in part else kv_heads)
        writer.add_tensor(to, np.ascontiguousarray(values))
    if config["rope_parameters"]["rope_type"] == "llama3":
        head_dim = config["hidden_size"] // heads
        writer.add_tensor("rope_freqs.weight", rope_factors(config["rope_parameters"], head_dim))
    finish(writer)


def rope_factors(rope, head_dim):
    """What llama.cpp divides the frequencies by, in place of the scaling's parameters."""
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    rotations = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / rope["factor"] + kept)).astype(np.float32)


def sharded():
    target = HERE / "sharded"
    shutil.rmtree(target, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(HERE / "qwen2", dtype=torch.bfloat16)
    model.save_pretrained(target, max_shard_size="6KB")
    (target / "generation_config.json").unlink()


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for model_name in sys.argv[1:] or ("llama", "llama-llama3", "qwen2", "qwen3"):
        model(model_name)
    if not sys.argv[1:]:
        dequant()
        sharded()
