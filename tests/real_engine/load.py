"""Requests one after the other, from a thread of its own."""

import threading
import time

from engines import chat
from processes import call


class Load(threading.Thread):
    """Keeps asking a router and remembers what went wrong. Its prompt is shorter than a block."""

    def __init__(self, port, pause=0.0):
        super().__init__(daemon=True)
        self.port, self.pause = port, pause
        self.good, self.bad, self.ended = 0, [], False

    def run(self):
        while not self.ended:
            try:
                status, body = call(self.port, "POST", "/v1/chat/completions", chat(8, text="hi"))
                if status == 200:
                    self.good += 1
                else:
                    self.bad.append(f"{status} {body}")
            except OSError as error:
                self.bad.append(repr(error))
            time.sleep(self.pause)


def good(loads):
    return sum(load.good for load in loads)


def end(loads):
    """Ends them. All of their requests must have gone well."""
    for load in loads:
        load.ended = True
    for load in loads:
        load.join(120)
    bad = [error for load in loads for error in load.bad]
    assert not bad, f"{len(bad)} of {good(loads) + len(bad)} requests failed, such as {bad[0]}"
