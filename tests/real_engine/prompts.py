"""Prompts of many kinds, the same in every run: (name, path, body)."""

import random

from engines import MODEL, chat

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
WORDS = (
    "a router sends every request to one of many model servers and each server keeps the keys and values of the prompts it has seen so "
    "that the next question which begins in the same way costs less time while answers stream back token by token to the people who asked"
).split()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up the {name} of a place, <b>\"now\"</b> & in a week — with 'quotes'.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "default": "Zürich"}, "days": {"type": "integer", "minimum": 1}},
                "required": ["place"],
            },
        },
    }
    for name in ("weather", "traffic")
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Zürich", "days": 2}'}}
UNICODE = "Grüße aus Zürich: 東京の天気は晴れ。 Привет! مرحبا 🙂🇨🇭👩‍👩‍👧 naïve café e\u0301 \u00a0\u2003 ﬁne\r\n\ttab  "


def words(count, seed):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def said(*turns, **more):
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"model": MODEL, "messages": messages, "max_tokens": 4, "ignore_eos": True, "temperature": 0, **more}


def text(prompt, **more):
    return {"model": MODEL, "prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0, **more}


def kinds():
    """One prompt of each kind, none with a beginning of another of more than a block."""
    rules = "  You are terse.\n" + words(90, 1) + "\n"
    begun = said(("user", words(60, 14)), ("assistant", words(30, 15)))
    parts = [{"type": "text", "text": words(70, 2)}, {"type": "text", "text": words(40, 3)}]
    called = [
        {"role": "user", "content": "How is it there? " + words(60, 4)},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear", "degrees": 21.5}'},
        {"role": "user", "content": words(30, 5)},
    ]
    return [
        ("a question", CHAT, said(("user", words(120, 6)))),
        ("a system prompt", CHAT, said(("system", rules), ("user", words(60, 7)))),
        ("a conversation", CHAT, said(("user", words(60, 8)), ("assistant", words(60, 9)), ("user", words(20, 10)))),
        ("tools", CHAT, said(("user", words(50, 11)), tools=TOOLS)),
        ("a tool's answer", CHAT, {**said(), "messages": called, "tools": TOOLS}),
        ("unicode", CHAT, said(("user", UNICODE * 4))),
        ("parts", CHAT, said(("user", parts))),
        ("long", CHAT, said(("user", words(1400, 12)))),
        ("salt", CHAT, said(("user", words(120, 13)), cache_salt="tenant-a")),
        ("a salt for the same", CHAT, said(("user", words(120, 13)), cache_salt="tenant-b")),
        ("to be continued", CHAT, {**begun, "add_generation_prompt": False, "continue_final_message": True}),
        ("completion", COMPLETIONS, text(words(150, 16))),
        ("unicode completion", COMPLETIONS, text(UNICODE * 3 + words(50, 17))),
        ("special tokens in text", COMPLETIONS, text("<|turn|>user: " + words(80, 18) + "<|end|><|turn|> assistant:")),
        ("token ids", COMPLETIONS, text([500 + (7 * n * n) % 9000 for n in range(205)])),
        ("whole blocks", COMPLETIONS, text([700 + (11 * n * n) % 9000 for n in range(160)])),
    ]


def turns():
    """What follows them: about thirty requests that have some, all or nothing of what came before."""
    asked = []
    for number, (name, path, body) in enumerate(kinds()):
        again = {**body, "max_tokens": 3}
        asked.append((f"{name}, again", path, again))
        if path == CHAT and "continue_final_message" not in body:
            more = [{"role": "assistant", "content": words(25, 100 + number)}, {"role": "user", "content": words(40, 200 + number)}]
            asked.append((f"{name}, next turn", path, {**body, "messages": body["messages"] + more}))
        elif isinstance(body.get("prompt"), str):
            asked.append((f"{name}, longer", path, {**body, "prompt": body["prompt"] + " " + words(60, 300 + number)}))
        elif "prompt" in body:
            asked.append((f"{name}, cut and gone on", path, {**body, "prompt": body["prompt"][:100] + list(range(2000, 2050))}))
    half = words(1400, 12)[:3000] + " but then " + words(100, 400)
    asked.append(("half of the long one", CHAT, said(("user", half))))
    asked.append(("without the salt", CHAT, said(("user", words(120, 13)))))
    asked.append(("new", CHAT, said(("user", words(200, 500)))))
    asked.append(("short", CHAT, chat(4, text="hi")))
    return asked


def apis():
    """The same conversation and tool in Anthropic's and OpenAI's other form. One token is made: no block but the prompt's."""
    function = TOOLS[0]["function"]
    tool = {"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}
    rules, first, answer, second = words(50, 601), words(60, 602), words(20, 603), words(30, 604)
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": answer}, {"role": "user", "content": second}]
    blocks = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    messages = {"model": MODEL, "max_tokens": 1, "system": rules, "messages": blocks, "tools": [tool]}
    responses = {"model": MODEL, "max_output_tokens": 1, "store": False, "instructions": "  " + rules, "input": turns}
    return [
        ("messages", MESSAGES, messages),
        ("responses", RESPONSES, responses),
        ("responses with a tool", RESPONSES, {**responses, "tools": [{"type": "function", **function}]}),
    ]
