"""Makes the fixture of tests/lora.rs: an adapter over the llama fixture, and its gradients by PyTorch.

Run once, with torch and transformers (the fixture here came from torch 2.15.0 and transformers
5.23.0, on a CPU), after make_goldens.py:

    python make_lora_golden.py

Writes llama-lora/adapter_config.json and llama-lora/adapter_model.safetensors in PEFT's layout with
random A and B, and llama-lora/golden.safetensors: loss, log-probabilities, and the gradients of
A and B over the sequences of the llama fixture.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
OUT = HERE / "llama-lora"
MODULES = ["q_proj", "v_proj", "o_proj", "down_proj"]
RANK, ALPHA = 3, 5.0


def main():
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_pretrained(
        HERE / "llama", dtype=torch.float32, attn_implementation="eager"
    )
    base = {name: p.detach() for name, p in model.named_parameters()}
    adapter = {}
    for name, p in base.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in MODULES:
            rows, columns = p.shape
            for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                key = f"base_model.model.{module}.lora_{side}.weight"
                adapter[key] = (0.2 * torch.randn(shape)).requires_grad_()
    merged = dict(base)
    for key in [key for key in adapter if ".lora_A." in key]:
        name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
        update = adapter[key.replace(".lora_A.", ".lora_B.")] @ adapter[key]
        merged[name] = base[name] + ALPHA / RANK * update
    golden, loss = {}, 0.0
    fixture = load_file(HERE / "llama" / "golden.safetensors")
    for i in range(2):
        tokens, weights = fixture[f"tokens.{i}"].long(), fixture[f"weights.{i}"]
        logits = functional_call(model, merged, (tokens[None],)).logits[0, :-1]
        found = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0]
        golden[f"tokens.{i}"], golden[f"weights.{i}"] = fixture[f"tokens.{i}"], weights
        golden[f"logprobs.{i}"] = found.detach().clone()
        loss = loss - (weights[1:] * found).sum()
    loss.backward()
    golden["loss"] = loss.detach()[None]
    for key, p in adapter.items():
        golden[f"gradient.{key}"] = p.grad
    OUT.mkdir(exist_ok=True)
    save_file(golden, OUT / "golden.safetensors")
    save_file({k: p.detach().contiguous() for k, p in adapter.items()}, OUT / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llama",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": MODULES,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (OUT / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
