"""The gateway of `quorate serve` in front of the engines: requests, streams, errors, aborts, a killed engine."""

import http.client
import json
import socket
import subprocess
import time

from engines import MODEL, chat
from load import Load, end, good
from processes import HOST, answers, call, metric, start, wait

GATEWAY, CONTROL, ADMIN = 28080, 28070, 28072


class Checks:
    def __init__(self, quorate, home, engines):
        self.quorate, self.home, self.engines = quorate, home, engines

    def start(self):
        urls = ",".join(engine.url for engine in self.engines)
        ports = {"--listen": GATEWAY, "--control": CONTROL, "--admin": ADMIN}
        listen = [word for option, port in ports.items() for word in (option, f"{HOST}:{port}")]
        start("serve", [self.quorate, "serve", *listen, "--endpoints", urls], self.home)
        wait("the gateway", lambda: answers(GATEWAY, "/ready"), 20)

    def all(self):
        return [
            self.models, self.chat_whole, self.chat_stream, self.both_are_used, self.errors_of_the_engine, self.abort,
            self.load_is_known, self.kill_and_restart,
        ]  # fmt: skip

    def models(self):
        wait("a model", lambda: json.loads(call(GATEWAY, "GET", "/v1/models")[1])["data"], 2)
        status, body = call(GATEWAY, "GET", "/v1/models")
        listed = json.loads(body)["data"]
        assert status == 200 and [m["id"] for m in listed] == [MODEL] and listed[0]["max_model_len"] == 2048, body

    def chat_whole(self):
        status, body = call(GATEWAY, "POST", "/v1/chat/completions", chat(16))
        answer = json.loads(body)
        assert status == 200 and answer["choices"][0]["message"]["content"], body
        assert answer["usage"]["completion_tokens"] == 16, answer["usage"]

    def chat_stream(self):
        connection = http.client.HTTPConnection(HOST, GATEWAY, timeout=120)
        body = chat(32, stream=True, stream_options={"include_usage": True})
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        events, times = [], []
        for line in response:
            if line.startswith(b"data: "):
                events.append(line[6:].strip())
                times.append(time.monotonic())
        assert events[-1] == b"[DONE]" and len(events) > 20, events
        usage = [json.loads(event)["usage"] for event in events[:-1] if json.loads(event).get("usage")]
        assert usage and usage[-1]["completion_tokens"] == 32, usage
        spread = times[-1] - times[0]
        assert spread > 0.005, f"all events came within {spread} s: that is no stream"

    def both_are_used(self):
        before = [metric(engine.port, "vllm:request_success_total") or 0 for engine in self.engines]
        for _ in range(24):
            assert call(GATEWAY, "POST", "/v1/chat/completions", chat(4))[0] == 200
        after = [metric(engine.port, "vllm:request_success_total") for engine in self.engines]
        assert all(b > a for a, b in zip(before, after)), (before, after)

    def errors_of_the_engine(self):
        status, body = call(GATEWAY, "POST", "/v1/chat/completions", chat(4, text="word " * 4000))
        assert status == 400 and json.loads(body)["error"]["message"], body
        status, body = call(GATEWAY, "POST", "/v1/chat/completions", {**chat(4), "model": "another"})
        assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found", body
        status, body = call(GATEWAY, "POST", "/tokenize", {"model": MODEL, "prompt": "some words"})
        assert status == 200 and json.loads(body)["count"] > 0, body

    def running(self):
        return sum(metric(engine.port, "vllm:num_requests_running") or 0 for engine in self.engines)

    def abort(self):
        sockets = []
        for stream in (True, False) * 3:
            connection = socket.create_connection((HOST, GATEWAY))
            body = json.dumps(chat(1900, stream=stream)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            sockets.append(connection)
        wait("six requests to run", lambda: self.running() == 6, 10)
        for connection in sockets:
            connection.close()
        _, took = wait("the engines to be idle", lambda: self.running() == 0, 3)
        return f"idle {took * 1000:.0f} ms after the clients left"

    def load_is_known(self):
        described, _ = wait("load figures", lambda: "vllm" in (text := self.describe("endpoint-1").lower()) and text, 10)
        assert MODEL in described, described
        page = call(ADMIN, "GET", "/metrics")[1]
        assert "llm_d_epp_request_total" in page and "llm_d_epp_request_output_tokens" in page, page[:2000]

    def kill_and_restart(self):
        engine = self.engines[0]
        loads = [Load(GATEWAY) for _ in range(4)]
        for load in loads:
            load.start()
        wait("load", lambda: good(loads) >= 20, 60)
        engine.kill()
        now = good(loads)
        wait("the other engine to take it all", lambda: good(loads) >= now + 60, 60)
        engine.start()
        engine.healthy()
        # A new engine's first answer takes seconds on a busy CPU: used is who has been given a request.
        _, took = wait("it to be used", lambda: engine.requests() > 0, 10)
        end(loads)
        assert took < 3, f"used again only after {took:.1f} s"
        return f"used again {took * 1000:.0f} ms after it was healthy, {good(loads)} requests, none failed"

    def describe(self, name):
        command = [self.quorate, "describe", "endpoint", name, "--server", f"{HOST}:{CONTROL}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
