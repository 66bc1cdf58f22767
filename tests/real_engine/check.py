"""Two vLLM engines on the CPU behind `quorate serve`: check.py QUORATE HOME

HOME holds venv/ (with vLLM) and model/. Prints one line for each check; exit status 1 if any failed.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

QUORATE, HOME = sys.argv[1], pathlib.Path(sys.argv[2])
HOST, GATEWAY, CONTROL, ADMIN = "127.0.0.1", 28080, 28070, 28072
ENGINES = [28101, 28102]
MODEL = "tiny"
# The engines are slow to start when two of them share two cores.
START = 300

children = {}


def start(name, command, **environment):
    log = open(HOME / f"{name}.log", "w")
    children[name] = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
    )


def stop(name, how=signal.SIGTERM):
    child = children.pop(name, None)
    if child is None:
        return
    # An engine is a process with children of its own.
    try:
        os.killpg(child.pid, how)
        child.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    except ProcessLookupError:
        child.wait()


def start_engine(port):
    start(
        f"engine-{port}",
        [
            str(HOME / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(HOME / "model"), "--served-model-name", MODEL, "--host", HOST, "--port", str(port),
            "--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "32",
            "--block-size", "32", "--enforce-eager",
        ],
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1", VLLM_HOST_IP=HOST,
        VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
    )  # fmt: skip


def call(port, method, path, body=None, timeout=120):
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"content-type": "application/json"} if payload else {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def answers(port, path):
    try:
        return call(port, "GET", path, timeout=3)[0] == 200
    except OSError:
        return False


def wait(what, condition, within):
    begun = time.monotonic()
    while not (value := condition()):
        if time.monotonic() - begun > within:
            raise AssertionError(f"waited {within} s for {what}")
        time.sleep(0.02)
    return value, time.monotonic() - begun


def chat(tokens, stream=False, text="tell me about servers", **more):
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": stream, **more}


def metric(port, name):
    page = call(port, "GET", "/metrics")[1]
    values = [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(map(float, values)) if values else None


def describe(name):
    command = [QUORATE, "describe", "endpoint", name, "--server", f"{HOST}:{CONTROL}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Load(threading.Thread):
    """Keeps asking and remembers what went wrong."""

    def __init__(self):
        super().__init__(daemon=True)
        self.good, self.bad, self.ended = 0, [], False

    def run(self):
        while not self.ended:
            try:
                status, body = call(GATEWAY, "POST", "/v1/chat/completions", chat(8))
                if status == 200:
                    self.good += 1
                else:
                    self.bad.append(f"{status} {body}")
            except OSError as error:
                self.bad.append(repr(error))


def models():
    wait("a model", lambda: json.loads(call(GATEWAY, "GET", "/v1/models")[1])["data"], 2)
    status, body = call(GATEWAY, "GET", "/v1/models")
    listed = json.loads(body)["data"]
    assert status == 200 and [m["id"] for m in listed] == [MODEL] and listed[0]["max_model_len"] == 2048, body


def chat_whole():
    status, body = call(GATEWAY, "POST", "/v1/chat/completions", chat(16))
    answer = json.loads(body)
    assert status == 200 and answer["choices"][0]["message"]["content"], body
    assert answer["usage"]["completion_tokens"] == 16, answer["usage"]


def chat_stream():
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


def both_are_used():
    before = [metric(port, "vllm:request_success_total") or 0 for port in ENGINES]
    for _ in range(24):
        assert call(GATEWAY, "POST", "/v1/chat/completions", chat(4))[0] == 200
    after = [metric(port, "vllm:request_success_total") for port in ENGINES]
    assert all(b > a for a, b in zip(before, after)), (before, after)


def errors_of_the_engine():
    status, body = call(GATEWAY, "POST", "/v1/chat/completions", chat(4, text="word " * 4000))
    assert status == 400 and json.loads(body)["error"]["message"], body
    status, body = call(GATEWAY, "POST", "/v1/chat/completions", {**chat(4), "model": "another"})
    assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found", body
    status, body = call(GATEWAY, "POST", "/tokenize", {"model": MODEL, "prompt": "some words"})
    assert status == 200 and json.loads(body)["count"] > 0, body


def running():
    return sum(metric(port, "vllm:num_requests_running") or 0 for port in ENGINES)


def abort():
    sockets = []
    for stream in (True, False) * 3:
        connection = socket.create_connection((HOST, GATEWAY))
        body = json.dumps(chat(1900, stream=stream)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        sockets.append(connection)
    wait("six requests to run", lambda: running() == 6, 10)
    for connection in sockets:
        connection.close()
    _, took = wait("the engines to be idle", lambda: running() == 0, 3)
    return f"idle {took * 1000:.0f} ms after the clients left"


def load_is_known():
    described, _ = wait("load figures", lambda: "vllm" in (text := describe("endpoint-1").lower()) and text, 10)
    assert MODEL in described, described
    page = call(ADMIN, "GET", "/metrics")[1]
    assert "llm_d_epp_request_total" in page and "llm_d_epp_request_output_tokens" in page, page[:2000]


def given(port):
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:request_success_total"]
    return sum(metric(port, name) or 0 for name in names)


def kill_and_restart():
    loads = [Load() for _ in range(4)]
    for load in loads:
        load.start()
    good = lambda: sum(load.good for load in loads)  # noqa: E731
    wait("load", lambda: good() >= 20, 60)
    stop(f"engine-{ENGINES[0]}", signal.SIGKILL)
    now = good()
    wait("the other engine to take it all", lambda: good() >= now + 60, 60)
    start_engine(ENGINES[0])
    wait("the killed engine to answer again", lambda: answers(ENGINES[0], "/health"), START)
    # A new engine's first answer takes seconds on a busy CPU: used is who has been given a request.
    _, took = wait("it to be used", lambda: given(ENGINES[0]) > 0, 10)
    for load in loads:
        load.ended = True
    for load in loads:
        load.join(120)
    bad = [error for load in loads for error in load.bad]
    assert not bad, f"{len(bad)} of {good()} requests failed, such as {bad[0]}"
    assert took < 3, f"used again only after {took:.1f} s"
    return f"used again {took * 1000:.0f} ms after it was healthy, {good()} requests, none failed"


def main():
    begun = time.monotonic()
    for port in ENGINES:
        start_engine(port)
    for port in ENGINES:
        wait(f"the engine on port {port}", lambda port=port: answers(port, "/health"), START)
    print(f"two engines answer after {time.monotonic() - begun:.0f} s", flush=True)
    start(
        "serve",
        [
            QUORATE, "serve", "--listen", f"{HOST}:{GATEWAY}", "--control", f"{HOST}:{CONTROL}", "--admin", f"{HOST}:{ADMIN}",
            "--endpoints", ",".join(f"http://{HOST}:{port}" for port in ENGINES),
        ],
    )  # fmt: skip
    wait("the gateway", lambda: answers(GATEWAY, "/ready"), 20)
    failed = 0
    checks = [models, chat_whole, chat_stream, both_are_used, errors_of_the_engine, abort, load_is_known, kill_and_restart]
    for check in checks:
        try:
            said = check()
            print(f"ok      {check.__name__}{': ' + said if said else ''}", flush=True)
        except Exception as error:  # every kind of failure is one failed check
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


try:
    status = main()
finally:
    for name in list(children):
        stop(name)
sys.exit(status)
