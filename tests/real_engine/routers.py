"""A cluster of three routers in front of the engines, and what their command line says."""

import json
import shutil
import subprocess

from processes import HOST, answers, start, stop, wait

POOL = "pool"


class Router:
    def __init__(self, quorate, home, number):
        self.quorate, self.home, self.number, self.name = quorate, home, number, f"router-{number}"
        self.gateway, self.control, self.peer, self.admin = (28000 + 100 * number + port for port in (80, 70, 71, 72))
        self.file, self.data = home / f"{self.name}.toml", home / self.name

    def start(self, *how):
        start(self.name, [self.quorate, "router", "--config", str(self.file), *how], self.home)
        wait(f"{self.name} to be ready", lambda: answers(self.admin, "/ready"), 60)

    def write(self):
        shutil.rmtree(self.data, ignore_errors=True)
        sections = {name: f'[{name}]\nlisten = "{HOST}:{getattr(self, name)}"' for name in ("peer", "control", "admin", "gateway")}
        node = f'[node]\nname = "{self.name}"\nregion = "here"\ndata_dir = "{self.data}"'
        self.file.write_text("\n".join([node, *sections.values()]) + "\n")

    def cli(self, *words, given=None):
        """What a command says. JSON is read."""
        command = [self.quorate, *words, "--server", f"{HOST}:{self.control}"]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
        return json.loads(done.stdout) if "json" in words else done.stdout

    def holders(self):
        """What is known of each engine, by endpoint."""
        status = self.cli("cache", "status", POOL, "-o", "json")
        return {holder["endpoint"]: holder for holder in status["holders"]}

    def lookup(self, body, path):
        """What the engines have of a prompt: its tokens, and cached tokens by endpoint."""
        said = self.cli("cache", "lookup", POOL, "--file", "-", "--path", path, "-o", "json", given=json.dumps(body))
        assert said["exact"], said
        return said["tokenIds"], {of["endpoint"]: of.get("cachedTokens", 0) for of in said["cached"]}

    def explain(self, request):
        return self.cli("explain", request, "-o", "json")

    def describe(self, endpoint):
        return self.cli("describe", "endpoint", endpoint)


class Cluster:
    def __init__(self, quorate, home, engines):
        self.quorate, self.home, self.engines = quorate, home, engines
        self.all = [Router(quorate, home, number) for number in (1, 2, 3)]

    def start(self):
        for router in self.all:
            router.write()
            router.start(*(["--bootstrap"] if router.number == 1 else ["--join", f"{HOST}:{self.all[0].peer}"]))
        documents = [{"apiVersion": "quorate/v1", "kind": "Pool", "metadata": {"name": POOL}, "spec": {}}]
        for engine in self.engines:
            spec = {"pool": POOL, "url": engine.url, "engine": "vllm"}
            documents.append({"apiVersion": "quorate/v1", "kind": "Endpoint", "metadata": {"name": engine.name}, "spec": spec})
        self.all[0].cli("apply", "--wait", "-f", "-", given="\n---\n".join(map(json.dumps, documents)))

    def stop(self):
        for router in self.all:
            stop(router.name)

    def schedule(self, algorithm):
        """The preset for precise prefixes, with the model's own tokenizer, and the algorithm by which engines are said to hash."""
        command = [self.quorate, "config", "presets", "precise-prefix"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        text = put(text, "token-producer", json.dumps({"local": {"directory": str(self.home / "model")}}))
        if algorithm:
            text = put(text, "precise-prefix-cache-producer", json.dumps({"tokenProcessorConfig": {"engineHashAlgorithm": algorithm}}))
        self.all[1].cli("apply", "-f", "-", given=text)

    def owner(self, engine):
        name = self.all[0].holders()[engine.name]["owner"]
        return next(router for router in self.all if router.name == name)

    def agree(self, routers=None):
        """Waits until each router's map has of each engine as many blocks as the engine must have, and all digests agree."""
        routers = routers or self.all

        def same():
            for router in routers:
                status = router.cli("cache", "status", POOL, "-o", "json")
                holders = {holder["endpoint"]: holder for holder in status["holders"]}
                for engine in self.engines:
                    said, due = holders.get(engine.name, {}).get("map", {}).get("gpu"), engine.due()
                    assert said == due, f"{router.name} has {said} blocks of {engine.name}, which has {due}"
            names = {router.name for router in routers}
            digests = [replica["digest"] for replica in status["replicas"] if replica["node"] in names]
            assert len(digests) == len(routers) and len(set(digests)) == 1, status["replicas"]
            return True

        wait("the maps to agree with the engines", same, 60, every=0.1)


def put(text, plugin, parameters):
    line = f"- type: {plugin}\n"
    assert line in text, text
    return text.replace(line, f"- type: {plugin}\n    parameters: {parameters}\n", 1)
