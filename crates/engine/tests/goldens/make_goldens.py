"""Makes the fixtures that tests/goldens.rs compares the engine with.

Run once, with torch and transformers (the fixtures here came from torch 2.15.0 and transformers
5.23.0, on a CPU):

    python make_goldens.py [MODEL]... # writes a directory a model beside this file
    python make_goldens.py greedy     # only greedy.safetensors of each, from the models as they are
    python make_goldens.py check DIR  # loads a checkpoint of the engine, prints log-probabilities

Each directory has a tiny random model as `save_pretrained` writes it, and golden.safetensors:
tokens and weights of two sequences, log-probabilities, loss, the gradient of every tensor, and the
weights after two steps of AdamW with clipping. greedy.safetensors has a prompt with the most likely
continuation, and the logits of every position.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).parent
SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    attn_implementation="eager",
    torch_dtype=torch.float32,
)
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=6, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_theta=5e5, rms_norm_eps=1e-5, tie_word_embeddings=False)
    ),
    "llama-bias": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, rope_theta=1e4, tie_word_embeddings=True)
    ),
    "qwen2-yarn": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SIZES,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16
            ),
        )
    ),
    "llama-linear": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)
        )
    ),
    "llama-llama3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=1e4,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        )
    ),
}
ADAM = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-4)
WEIGHT_DECAY, GRAD_CLIP, STEPS = 0.1, 0.5, 2


def logprobs(model, tokens):
    logits = model(tokens[None]).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0]


def make(name):
    torch.manual_seed(len(name) * 1000 + 7)
    model = MODELS[name]().train()
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            # Far from any symmetry: norms around 1, the rest wide enough to matter.
            p.normal_(1.0, 0.2) if "norm" in parameter_name else p.normal_(0.0, 0.3)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink()
    golden = {}
    batch = []
    for i, length in enumerate((50, 21)):
        tokens = torch.randint(SIZES["vocab_size"], (length,))
        weights = torch.rand(length) * (torch.rand(length) < 0.7)
        golden[f"tokens.{i}"], golden[f"weights.{i}"] = tokens.int(), weights
        batch.append((tokens, weights))
    # One group decays and one does not, as the engine has it.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAM)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = 0.0
        for i, (tokens, weights) in enumerate(batch):
            found = logprobs(model, tokens)
            loss = loss - (weights[1:] * found).sum()
            if step == 0:
                golden[f"logprobs.{i}"] = found.detach().clone()
        loss.backward()
        if step == 0:
            golden["loss"] = loss.detach().clone()[None]
            for parameter_name, p in model.named_parameters():
                golden[f"gradient.{parameter_name}"] = p.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        if step == 0:
            golden["grad_norm"] = norm.detach().clone()[None]
        optimizer.step()
    for parameter_name, p in model.named_parameters():
        golden[f"stepped.{parameter_name}"] = p.detach().clone()
    save_file({k: v.contiguous() for k, v in golden.items()}, HERE / name / "golden.safetensors")
    greedy(name)


@torch.no_grad()
def greedy(name):
    model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(11)
    prompt = torch.randint(SIZES["vocab_size"], (1, 9), generator=generator)
    model.generation_config.eos_token_id = None
    tokens = model.generate(prompt, do_sample=False, max_new_tokens=40)[0]
    logits = model(tokens[None]).logits[0]
    golden = {"prompt": prompt[0].int(), "tokens": tokens.int(), "logits": logits.contiguous()}
    save_file(golden, HERE / name / "greedy.safetensors")


def check(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.arange(20) % model.config.vocab_size
    with torch.no_grad():
        print(type(model).__name__, [round(x, 5) for x in logprobs(model, tokens).tolist()])


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
    elif sys.argv[1:2] == ["greedy"]:
        for model_name in MODELS:
            greedy(model_name)
    else:
        for model_name in sys.argv[1:] or MODELS:
            make(model_name)
