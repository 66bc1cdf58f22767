"""The two vLLM engines, and what each of them must have in its cache, kept from what it said of its own tokens."""

import json
import signal

from processes import HOST, answers, call, metric, start, stop, wait

MODEL = "tiny"
BLOCK = 32
# The engines are slow to start when two of them share two cores.
START = 300


class Engine:
    """An engine with KV events, as an operator would start it, and a ledger of the blocks that it must have stored."""

    def __init__(self, number, home, algorithm, blocks):
        self.name, self.port, self.home = f"engine-{number}", 28100 + number, home
        self.url = f"http://{HOST}:{self.port}"
        self.algorithm, self.blocks = algorithm, blocks
        self.stored = set()
        # Blocks of the prompt by which a router sees how a fresh engine announces its blocks: two, taken to be of 128 tokens.
        self.self_check = 2 * 128 // BLOCK

    def start(self):
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.port + 400}",
            "replay_endpoint": f"tcp://*:{self.port + 500}",
        }
        algorithm = ["--prefix-caching-hash-algo", self.algorithm] if self.algorithm else []
        start(
            self.name,
            [
                str(self.home / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server",
                "--model", str(self.home / "model"), "--served-model-name", MODEL, "--host", HOST, "--port", str(self.port),
                "--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "32",
                "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(self.blocks), "--enforce-eager",
                "--enable-prefix-caching", "--enable-prompt-tokens-details",
                "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--kv-events-config", json.dumps(events), *algorithm,
            ],
            self.home,
            VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1", VLLM_HOST_IP=HOST,
            VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
        )  # fmt: skip

    def healthy(self):
        return wait(f"{self.name} to answer", lambda: answers(self.port, "/health"), START, every=0.2)[1]

    def kill(self):
        stop(self.name, signal.SIGKILL)
        self.stored.clear()
        # By now routers know the size of its blocks.
        self.self_check = 2

    def tokens(self, path, body):
        """The prompt's tokens, as the engine's own tokenizer makes them."""
        if isinstance(body.get("prompt"), list):
            return body["prompt"]
        asked = ("model", "messages", "prompt", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
        status, text = call(self.port, "POST", "/tokenize", {key: body[key] for key in asked if key in body})
        assert status == 200, f"/tokenize of {path}: {status} {text}"
        return json.loads(text)["tokens"]

    def ask(self, path, body):
        """Asks the engine itself. Gives its usage."""
        status, text = call(self.port, "POST", path, {**body, "return_token_ids": True})
        assert status == 200, f"{self.name}: {status} {text}"
        return self.told(body, json.loads(text))

    def told(self, body, answer):
        """Notes what an answer of this engine says of its tokens. Gives its usage."""
        choice = answer["choices"][0]
        prompt = answer["prompt_token_ids"] if "prompt_token_ids" in answer else choice["prompt_token_ids"]
        assert prompt, answer
        # The last token that was made has no keys and values yet.
        self.stored |= blocks_of(prompt + choice["token_ids"][:-1], body.get("cache_salt"))
        return answer["usage"]

    def has(self, tokens, salt=None):
        """Tokens of a prompt that the ledger says are cached. An engine always computes the block with the last token."""
        found = 0
        for end in range(BLOCK, len(tokens), BLOCK):
            if (salt, tuple(tokens[:end])) not in self.stored:
                break
            found = end
        return found

    def due(self):
        """Blocks that it must have, the self-check's own among them."""
        return len(self.stored) + self.self_check

    def requests(self):
        """Requests that it was given so far."""
        names = ("num_requests_running", "num_requests_waiting", "request_success_total")
        return sum(metric(self.port, f"vllm:{name}") or 0 for name in names)

    def hits(self):
        return metric(self.port, "vllm:prefix_cache_hits_total") or 0


def blocks_of(tokens, salt=None):
    """The full blocks of a sequence, each known by all tokens up to its end."""
    return {(salt, tuple(tokens[:end])) for end in range(BLOCK, len(tokens) + 1, BLOCK)}


def cached(usage):
    """Prompt tokens that were found in the cache, in the usage of any API."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0


def prompt_tokens(usage):
    """All tokens of the prompt. Anthropic counts those of the cache apart."""
    beside = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    return beside + (usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"])


def chat(tokens, stream=False, text="tell me about servers", **more):
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": stream, **more}
