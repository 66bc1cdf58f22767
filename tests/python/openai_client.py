"""The official OpenAI client against a gateway: openai_client.py BASE_URL MODEL

MODEL must be served by echoing model servers. Prints one line for each check; exit status 1 if any failed.
"""

import asyncio
import sys
import traceback

import openai

base_url, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=20)
checks = []


def check(function):
    checks.append(function)
    return function


def user(text):
    return [{"role": "user", "content": text}]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def models_are_listed():
    listed = client.models.list().data
    assert [m.id for m in listed] == [model], listed
    assert listed[0].object == "model" and listed[0].owned_by, listed
    assert client.models.retrieve(model).id == model


@check
def chat():
    answer = client.chat.completions.create(model=model, messages=user("over and out"), max_tokens=64)
    assert answer.choices[0].message.content == "over and out", answer
    assert answer.choices[0].message.role == "assistant", answer
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    assert answer.model == model and answer.object == "chat.completion", answer
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0, answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage


@check
def chat_stream():
    text = "one token after the other, until all of them have arrived"
    stream = client.chat.completions.create(
        model=model, messages=user(text), max_tokens=64, stream=True, stream_options={"include_usage": True}
    )
    got, reasons, usage, chunks = "", [], None, 0
    for chunk in stream:
        chunks += 1
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            got += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert got == text and reasons in (["stop"], ["length"]), (got, reasons)
    assert chunks >= 5, f"{chunks} chunks are no stream"
    assert usage is not None and usage.completion_tokens >= 5, usage


@check
def a_stream_that_is_left_early():
    stream = client.chat.completions.create(model=model, messages=user("word " * 50), max_tokens=50, stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    # The client goes on to use the connection pool as if nothing had happened.
    chat()


@check
def several_choices_and_stop():
    answer = client.chat.completions.create(model=model, messages=user("a b STOP c d"), max_tokens=64, n=2, stop=["STOP"])
    assert len(answer.choices) == 2, answer
    for choice in answer.choices:
        assert choice.message.content.strip() == "a b" and choice.finish_reason == "stop", answer


@check
def long_prompts_and_unicode():
    text = "größer, 日本語, 🚦 " * 200
    answer = client.chat.completions.create(model=model, messages=user(text), max_tokens=8000)
    assert answer.choices[0].message.content.strip() == text.strip(), "the text came back changed"


@check
def completions():
    answer = client.completions.create(model=model, prompt="say it again", max_tokens=32)
    assert answer.choices[0].text.strip() == "say it again", answer
    got = ""
    for chunk in client.completions.create(model=model, prompt="say it again", max_tokens=32, stream=True):
        got += chunk.choices[0].text if chunk.choices else ""
    assert got.strip() == "say it again", got


@check
def responses():
    answer = client.responses.create(model=model, input="respond to this", max_output_tokens=32)
    assert answer.output_text.strip() == "respond to this", answer
    assert answer.usage.output_tokens > 0, answer.usage
    got, ended = "", False
    for event in client.responses.create(model=model, input="respond to this", max_output_tokens=32, stream=True):
        if event.type == "response.output_text.delta":
            got += event.delta
        ended = ended or event.type == "response.completed"
    assert got.strip() == "respond to this" and ended, (got, ended)


@check
def embeddings():
    # The client asks for base64 by itself and turns it back into numbers.
    answer = client.embeddings.create(model=model, input=["first", "second", "first"])
    assert [d.index for d in answer.data] == [0, 1, 2], answer
    vectors = [d.embedding for d in answer.data]
    assert len(vectors[0]) == len(vectors[1]) >= 8, len(vectors[0])
    assert vectors[0] == vectors[2] != vectors[1]
    plain = client.embeddings.create(model=model, input="first", encoding_format="float")
    assert max(abs(a - b) for a, b in zip(plain.data[0].embedding, vectors[0])) < 1e-6


@check
def errors():
    error = raises(openai.NotFoundError, lambda: client.chat.completions.create(model="nobody-has-it", messages=user("x")))
    assert error.status_code == 404 and error.code == "model_not_found" and "nobody-has-it" in error.message, error.body
    error = raises(openai.NotFoundError, lambda: client.models.retrieve("nobody-has-it"))
    assert "nobody-has-it" in error.message, error.body
    # The router knows no such model; the engine knows what is wrong with these.
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[], max_tokens=4))
    assert error.body and error.body["message"], error.body
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=user("x"), max_tokens=-1))
    assert error.body and error.body["message"], error.body
    error = raises(
        openai.APIStatusError,
        lambda: client.post("/chat/completions", body=["not", "an", "object"], cast_to=object),
    )
    assert error.status_code == 400 and error.body["message"], error.body


@check
def request_ids():
    raw = client.chat.completions.with_raw_response.create(model=model, messages=user("x"), max_tokens=4)
    assert raw.headers.get("x-request-id"), dict(raw.headers)
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=user("x"), max_tokens=4, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers.get("x-request-id") == "mine-1", dict(raw.headers)


@check
def many_at_once():
    async def run():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=30) as many:
            texts = [f"number {n} of many" for n in range(64)]
            calls = [many.chat.completions.create(model=model, messages=user(t), max_tokens=32) for t in texts]
            answers = await asyncio.gather(*calls)
            assert [a.choices[0].message.content for a in answers] == texts

    asyncio.run(run())


failed = 0
for function in checks:
    try:
        function()
        print(f"ok      {function.__name__}")
    except Exception:  # every kind of failure is one failed check
        failed += 1
        print(f"FAILED  {function.__name__}\n{traceback.format_exc()}")
print(f"{len(checks) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
