"""Drives a server with the official `openai` package, as it comes from PyPI. Asserts; prints its
version."""

import os

import openai


def main():
    client = openai.OpenAI()
    model = os.environ["MODEL"]
    assert model in [m.id for m in client.models.list().data]
    assert client.models.retrieve(model).id == model

    done = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=8, temperature=0, logprobs=0,
        seed=1, extra_body={"return_token_ids": True},
    )
    choice = done.choices[0]
    assert len(choice.logprobs.token_logprobs) == done.usage.completion_tokens == len(choice.token_ids)
    same = client.completions.create(
        model=model, prompt=choice.prompt_token_ids, max_tokens=8, temperature=0
    )
    assert same.choices[0].text == choice.text, (same, done)
    text = "".join(
        part.choices[0].text
        for part in client.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
        )
    )
    assert text == choice.text, (text, choice.text)

    messages = [{"role": "user", "content": "Say one word."}]
    options = dict(model=model, messages=messages, max_tokens=16, seed=3, logprobs=True)
    whole = client.chat.completions.create(**options, n=2)
    assert len(whole.choices) == 2
    content = whole.choices[0].logprobs.content
    assert all(entry.logprob <= 0 for entry in content)
    likely = client.chat.completions.create(**options, top_logprobs=5)
    assert likely.choices[0].message.content == whole.choices[0].message.content
    for entry, plain in zip(likely.choices[0].logprobs.content, content, strict=True):
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True), entry
        assert entry.logprob == plain.logprob <= values[0], entry
        same = [top for top in entry.top_logprobs if top.bytes == entry.bytes and top.token == entry.token]
        assert not same or abs(same[0].logprob - entry.logprob) < 1e-6 or len(same) > 1, entry
    greedy = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=8, temperature=0, logprobs=3
    ).choices[0].logprobs
    for token, logprob, top in zip(greedy.tokens, greedy.token_logprobs, greedy.top_logprobs, strict=True):
        assert top[token] == max(top.values()) == logprob, (token, top)
    streamed = client.chat.completions.create(**options, top_logprobs=2, stream=True)
    entries = [e for part in streamed for c in part.choices if c.logprobs for e in c.logprobs.content]
    assert [e.logprob for e in entries] == [e.logprob for e in content]
    assert all(len(e.top_logprobs) == 2 for e in entries)
    streamed = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for part in streamed:
        usage = part.usage or usage
        for delta in part.choices:
            text += delta.delta.content or ""
    assert text == whole.choices[0].message.content, (text, whole)
    assert usage.completion_tokens == len(content)

    tool = {"type": "function", "function": {"name": "bash", "description": "Runs a command",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}}
    called = client.chat.completions.create(
        model=model, messages=messages, tools=[tool], max_tokens=8, tool_choice="auto"
    )
    assert called.choices[0].finish_reason in ("stop", "length", "tool_calls")
    for wrong in ({"top_p": 0.5}, {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"tool_choice": "required", "tools": [tool]}):
        try:
            client.chat.completions.create(model=model, messages=messages, **wrong)
        except openai.BadRequestError as error:
            assert error.param in wrong, error
        else:
            raise AssertionError(wrong)
    for key, kind in (("wrong-key-of-nobody-here", openai.AuthenticationError),):
        try:
            openai.OpenAI(api_key=key).models.list()
        except kind:
            pass
        else:
            raise AssertionError(key)
    print(f"openai {openai.__version__} on {model}: {choice.text!r}")


if __name__ == "__main__":
    main()
