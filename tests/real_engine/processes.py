"""Child processes with their output in files, and HTTP calls to what they serve."""

import http.client
import json
import os
import signal
import subprocess
import time

HOST = "127.0.0.1"

children = {}


def start(name, command, home, **environment):
    with open(home / f"{name}.log", "w") as log:
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


def stop_all():
    for name in list(children):
        stop(name)


def ended():
    """Names of children that are no more, though nobody stopped them."""
    return [name for name, child in children.items() if child.poll() is not None]


def call(port, method, path, body=None, timeout=120, headers=None):
    status, _, text = exchange(port, method, path, body, timeout, headers)
    return status, text


def exchange(port, method, path, body=None, timeout=120, headers=None):
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        given = {"content-type": "application/json"} if payload else {}
        connection.request(method, path, payload, {**given, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def answers(port, path):
    try:
        return call(port, "GET", path, timeout=3)[0] == 200
    except OSError:
        return False


def wait(what, condition, within, every=0.02):
    """Waits until the condition gives something true, and gives that and the seconds it took. A failed assertion in it is not yet true."""
    begun, why = time.monotonic(), ""
    while True:
        try:
            value = condition()
        except AssertionError as error:
            value, why = None, f": {error}"
        if value:
            return value, time.monotonic() - begun
        assert not (gone := ended()), f"{gone} ended while waiting for {what}"
        assert time.monotonic() - begun < within, f"waited {within} s for {what}{why}"
        time.sleep(every)


def metric(port, name, *having):
    """The sum of a metric's values whose lines have these texts, such as labels. None: there is none."""
    page = call(port, "GET", "/metrics")[1]
    lines = (line for line in page.splitlines() if line.startswith((name + "{", name + " ")))
    values = [line.rsplit(" ", 1)[1] for line in lines if all(text in line for text in having)]
    return sum(map(float, values)) if values else None
