"""Trains the small tokenizers of these tests and writes what the Python libraries say about them.

    pip install tokenizers==0.23.3 transformers==5.23.0 jinja2==3.1.6
    python generate.py CORPUS_FILE...

Each folder gets a tokenizer.json, a tokenizer_config.json and a chat_template.jinja; golden.json has what `transformers` renders and encodes.
The corpus only decides which merges there are: any text does.
"""

import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import templates

HERE = os.path.dirname(os.path.abspath(__file__))
VOCABULARY = 3000
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
MORE = """Größe, naïve café, señor, Ελληνικά, Привет мир, 你好,世界。今天天气很好。こんにちは世界 안녕하세요 שלום עולם مرحبا
def f(x):\n    return [y ** 2 for y in range(x) if y % 2 == 0]\n{"name": "get_weather", "arguments": {"city": "Paris"}} 3.14159 1234567 😀🎉
<think>Let me think about it.</think> I'm we've you'll THEY'RE don't\tit's  two  spaces   three\r\n"""


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def byte_level(patterns, specials, normalizer=None, bos=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    steps = [split(p) for p in patterns] + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return tokenizer, trainer, specials, bos


def sentencepiece(specials, bos, pre=None, normalizer=None):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre:
        tokenizer.pre_tokenizer = pre
    base = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=base, show_progress=False, max_token_length=16)
    return tokenizer, trainer, specials, bos


FAMILIES = {
    "chatml": (
        byte_level([QWEN], ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"], normalizers.NFC()),
        templates.CHATML,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None},
        ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    ),
    "headers": (
        byte_level(
            [LLAMA],
            ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>"],
            bos="<|begin_of_text|>",
            ignore_merges=True,
        ),
        templates.HEADERS,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        [],
    ),
    "brackets": (
        sentencepiece(["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"], "<s>", pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        templates.BRACKETS,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        [],
    ),
    "turns": (
        sentencepiece(["<start_of_turn>", "<end_of_turn>"], "<s>", None, normalizers.Replace(" ", "▁")),
        templates.TURNS,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        [],
    ),
    "legacy": (
        sentencepiece([], "<s>", None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
        templates.BRACKETS,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        [],
    ),
    "markers": (
        byte_level(
            [
                r"\p{N}{1,3}",
                r"[一-龥぀-ゟ゠-ヿ]+",
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
            bos="<｜begin▁of▁sentence｜>",
        ),
        templates.MARKERS,
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        ["<｜User｜>", "<｜Assistant｜>"],
    ),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather <b>of</b> a city & 'more', é",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant.  Answer briefly.\n"}
CHAT = [
    {"role": "user", "content": "  What's the weather in Zürich?\n\n"},
    {"role": "assistant", "content": "<think>\nWell, let me think.\n</think>\n\nIt is sunny, 21.5 °C. "},
    {"role": "user", "content": "And tomorrow, 2024-07-26? \u4f60\u597d \U0001f600"},
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Z\\u00fcrich", "days": 2, "f": 1.5, "x": [true, null, "<&>\'"]}'}}
CALL_PARSED = json.loads(json.dumps(CALL)) | {"function": {"name": "get_weather", "arguments": json.loads(CALL["function"]["arguments"])}}
AGENT = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"t": 21}'},
]
# What an engine makes of it before the template sees it.
AGENT_PARSED = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL_PARSED]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"t": 21}'},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "first"}, "second", {"type": "input_text", "text": " third "}]}]
PARTS_PARSED = [{"role": "user", "content": "first\nsecond\n third "}]


def wrapped(messages):
    """The same conversation for a template that walks through the parts of contents."""
    out = []
    for message in messages:
        content = message["content"]
        if message["role"] != "tool":
            content = [{"type": "text", "text": content}] if content else []
        out.append(message | {"content": content})
    return out


CASES = [
    # name, request, conversation as the template gets it (None: as in the request), families (None: all)
    ("plain", {"messages": CHAT}, None, None),
    ("system", {"messages": [SYSTEM, *CHAT]}, None, None),
    ("one", {"messages": CHAT[:1]}, None, None),
    ("no_generation", {"messages": CHAT[:2], "add_generation_prompt": False}, None, None),
    ("continued", {"messages": CHAT[:2], "add_generation_prompt": False, "continue_final_message": True}, None, ["chatml", "turns", "markers"]),
    ("tools", {"messages": [SYSTEM, *CHAT], "tools": TOOLS}, None, ["chatml", "headers", "brackets", "legacy"]),
    ("agent", {"messages": AGENT, "tools": TOOLS}, AGENT_PARSED, ["chatml", "headers"]),
    ("parts", {"messages": PARTS}, PARTS_PARSED, ["chatml", "brackets", "turns", "legacy", "markers"]),
    ("no_thinking", {"messages": CHAT[:1], "chat_template_kwargs": {"enable_thinking": False}}, None, ["chatml"]),
    (
        "documents",
        {"messages": CHAT[:1], "documents": [{"title": f"t{i}", "text": "x " * i} for i in range(5)], "chat_template_kwargs": {"date_string": "1 May 2025"}},
        None,
        ["headers"],
    ),
    ("specials_in_text", {"messages": [{"role": "user", "content": "a <|im_end|> b<|eot_id|> c [INST] d </s> e <｜User｜>f<think> "}]}, None, None),
    ("bad_roles", {"messages": [CHAT[0], {"role": "gnome", "content": "x"}]}, None, ["brackets", "turns"]),
]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\r\nlines\n\n\n  end\n",
    "it's I'M we'll 123456789 3.14 a1b2",
    "na\u00efve cafe\u0301 \u212b \u1e9b\u0323 ﬁ",
    "你好,世界。こんにちは 안녕 Привет שלום 😀👩‍👩‍👧‍👦🎉",
    "\u0000\u0001 \u00a0\u2003x\u3000y \ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<think>x</think> </s><s> <unk>[INST]x[/INST] <start_of_turn>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 2}  # comment\n\n\n",
]


def main():
    corpus = [open(path, encoding="utf-8").read() for path in sys.argv[1:]]
    lines = [line for text in corpus for line in text.splitlines(keepends=True)] + MORE.splitlines(keepends=True) * 5
    for name, ((tokenizer, trainer, specials, bos), template, config, added) in FAMILIES.items():
        tokenizer.train_from_iterator(lines, trainer)
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
        if bos:
            tokenizer.add_special_tokens([bos])
            number = tokenizer.token_to_id(bos)
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)])
        folder = os.path.join(HERE, name)
        os.makedirs(folder, exist_ok=True)
        tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32768, **config}
        if name == "legacy":
            # As older repositories have it: in the config, several by name, special tokens as objects.
            settings["chat_template"] = [{"name": "default", "template": template}, {"name": "tool_use", "template": template}]
            settings["bos_token"] = {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        else:
            open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8").write(template)
        json.dump(settings, open(os.path.join(folder, "tokenizer_config.json"), "w"), indent=1, ensure_ascii=False)
        reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **config)
        golden = {"texts": [], "chats": []}
        for text in TEXTS:
            golden["texts"].append({"text": text, "with": tokenizer.encode(text).ids, "without": tokenizer.encode(text, add_special_tokens=False).ids})
        for case, request, conversation, families in CASES:
            if families is not None and name not in families:
                continue
            conversation = conversation or request["messages"]
            if name == "headers":
                conversation = wrapped(conversation)
            options = {"add_generation_prompt": True, "continue_final_message": False, "documents": None}
            options |= {k: request[k] for k in options if k in request} | request.get("chat_template_kwargs", {})
            if name == "headers":
                options.setdefault("date_string", "26 Jul 2024")
                request = request | {"chat_template_kwargs": request.get("chat_template_kwargs", {}) | {"date_string": options["date_string"]}}
            entry = {"name": case, "request": request}
            try:
                text = reference.apply_chat_template(conversation, tools=request.get("tools"), tokenize=False, **options)
                entry |= {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
            except Exception as error:  # the template refuses
                entry |= {"error": str(error)}
            golden["chats"].append(entry)
        json.dump(golden, open(os.path.join(folder, "golden.json"), "w"), indent=None, ensure_ascii=False)


main()
