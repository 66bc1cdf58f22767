"""Writes a tiny Llama with a tokenizer of its own to a directory: make_model.py DIR

Only the shape of the model is written; the engine fills the weights with random numbers (--load-format dummy). The tokenizer is a
byte-level BPE trained on generated sentences, so nothing is downloaded.
"""

import json
import pathlib
import random
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|end|>", "<|turn|>", "<|pad|>"]
# As many tokens as real models have at least: those above what the training finds are never made of text.
TOKENS = 16_384
WORDS = (
    "a router sends every request to one of many model servers and each server keeps the keys and values of the prompts it has seen so "
    "that the next question which begins in the same way costs less time while answers stream back token by token to the people who asked"
).split()
# In the manner of the templates that models come with: a system prompt, tools, calls of tools and what they answered.
CHAT = """
{%- if tools %}
    {{- '<|turn|>tools: ' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' if not loop.last }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|turn|>' + message.role + ': ' }}
    {%- if message.content %}
        {{- message.content | trim if message.role == 'system' else message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\ncalls ' + call.function.name + ' with ' + call.function.arguments | tojson }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant: ' }}
{%- endif %}
"""


def tokenizer():
    rng = random.Random(1)
    sentences = (" ".join(rng.choices(WORDS, k=rng.randint(8, 30))) + "." for _ in range(2000))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet))
    whole = json.loads(bpe.to_str())
    vocabulary = whole["model"]["vocab"]
    vocabulary.update({f"Ġunused{number}": number for number in range(len(vocabulary), TOKENS)})
    return Tokenizer.from_str(json.dumps(whole))


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    bpe = tokenizer()
    bpe.save(str(directory / "tokenizer.json"))
    end, pad = bpe.token_to_id(SPECIAL[0]), bpe.token_to_id(SPECIAL[2])

    def write(name, value):
        (directory / name).write_text(json.dumps(value, indent=1))

    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[2],
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    })
    write("generation_config.json", {"eos_token_id": end, "pad_token_id": pad})
    write("config.json", {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": TOKENS,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": pad,
    })


main(pathlib.Path(sys.argv[1]))
