"""Two vLLM engines on the CPU behind Quorate: check.py QUORATE HOME [PART]

HOME holds venv/ (with vLLM) and model/. PART is cache or gateway; else both. Prints one line for each check; exit status 1 if any failed.
"""

import pathlib
import signal
import sys
import time

from cache import Checks as CacheChecks
from engines import Engine
from gateway import Checks as GatewayChecks
from processes import stop_all
from routers import Cluster

QUORATE, HOME = sys.argv[1], pathlib.Path(sys.argv[2])
PART = sys.argv[3] if len(sys.argv) > 3 else ""
# Small enough that a few long prompts evict others, large enough for what is asked at once.
BLOCKS = 600


def run(checks):
    failed = 0
    for check in checks:
        begun = time.monotonic()
        try:
            result, said = "ok     ", check()
        except Exception as error:  # every kind of failure is one failed check
            failed, result, said = failed + 1, "FAILED ", f"{type(error).__name__}: {error}"
        took = f"{time.monotonic() - begun:.1f} s"
        print(f"{result} {check.__name__} ({took}){': ' + said if said else ''}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    return failed


def main():
    begun = time.monotonic()
    engines = [Engine(number, HOME, "sha256_cbor", BLOCKS) for number in (1, 2)]
    for engine in engines:
        engine.start()
    for engine in engines:
        engine.healthy()
    print(f"two engines answer after {time.monotonic() - begun:.0f} s", flush=True)
    failed = 0
    if PART != "gateway":
        print("\nTheir KV caches, as three routers know them:", flush=True)
        cluster = Cluster(QUORATE, HOME, engines)
        cluster.start()
        cluster.schedule("sha256_cbor")
        failed += run(CacheChecks(cluster).all())
        cluster.stop()
    if PART != "cache":
        print("\nThe gateway of `quorate serve`:", flush=True)
        gateway = GatewayChecks(QUORATE, HOME, engines)
        gateway.start()
        failed += run(gateway.all())
    return 1 if failed else 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    status = main()
finally:
    stop_all()
sys.exit(status)
