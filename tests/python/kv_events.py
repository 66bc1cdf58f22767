"""An engine's event sockets and their reader, with libzmq: what the product's own ZeroMQ must agree with.

publish: binds a PUB and a ROUTER as vLLM's publisher does, prints their ports, publishes 200 batches of which every fifth
gets lost, and answers replays until its input ends.
subscribe EVENTS REPLAY COUNT: prints number and payload (hex) of COUNT live batches, then of all that a replay from 0 has.
"""

import struct
import sys
import threading
import time

import zmq

END = (-1).to_bytes(8, "big", signed=True)


def payload(seq):
    removed = b"\x92\xacBlockRemoved\x91\xcf" + struct.pack(">Q", seq)
    return b"\x93\xcb" + struct.pack(">d", 1700000000.5 + seq) + b"\x91" + removed + b"\x00"


def publish():
    context = zmq.Context()
    pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    ports = [s.bind_to_random_port("tcp://127.0.0.1") for s in (pub, router)]
    print(*ports, flush=True)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    buffer = []
    while not ended.is_set():
        if len(buffer) < 200:
            seq = len(buffer)
            buffer.append((seq.to_bytes(8, "big"), payload(seq)))
            if seq % 5 != 4:
                pub.send_multipart((b"kv", *buffer[-1]))
        while router.poll(5):
            client, empty, start = router.recv_multipart()
            assert empty == b"", empty
            for seq, body in buffer[int.from_bytes(start, "big"):]:
                router.send_multipart((client, b"", b"kv", seq, body))
            router.send_multipart((client, b"", b"", END, b""))
    context.destroy(linger=0)


def subscribe(events, replay, count):
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    # The other end has to answer pings, or the connection is closed.
    sub.setsockopt(zmq.HEARTBEAT_IVL, 50)
    sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2000)
    sub.connect(events)
    sub.subscribe("kv@")
    print("ready", flush=True)
    sub.setsockopt(zmq.RCVTIMEO, 30000)
    for _ in range(count):
        topic, seq, body = sub.recv_multipart()
        assert topic.startswith(b"kv@"), topic
        print("live", int.from_bytes(seq, "big"), body.hex(), flush=True)
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, 30000)
    dealer.connect(replay)
    dealer.send_multipart((b"", (0).to_bytes(8, "big")))
    while True:
        *_, seq, body = dealer.recv_multipart()
        if seq == END:
            break
        print("replayed", int.from_bytes(seq, "big"), body.hex(), flush=True)
    context.destroy(linger=0)


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish()
    else:
        subscribe(sys.argv[2], sys.argv[3], int(sys.argv[4]))
