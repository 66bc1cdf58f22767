"""What the routers know of the engines' KV caches, against the engines themselves."""

import json
import signal

from engines import BLOCK, blocks_of, cached, prompt_tokens
from load import Load, end, good
from processes import call, exchange, metric, stop, wait
from prompts import CHAT, COMPLETIONS, apis, kinds, said, text, turns, words

SOON = 60


class Checks:
    def __init__(self, cluster):
        self.cluster, self.engines, self.routers = cluster, cluster.engines, cluster.all

    def all(self):
        return [
            self.self_check, self.events, self.lookups, self.routing, self.other_apis, self.owner_dies, self.evictions, self.engine_restarts,
            self.other_algorithm, self.algorithms,
        ]  # fmt: skip

    def self_check(self):
        """Of engines that nobody has asked, routers know the self-check's blocks, how they are hashed, and nothing is wrong."""
        self.cluster.agree()
        for engine in self.engines:
            self.keyed(engine, f"exact {engine.algorithm}")
            assert not (why := self.conditions(engine)), why
        owners = {self.cluster.owner(engine).name for engine in self.engines}
        return f"{BLOCK}-token blocks, hashed by sha256_cbor, of engines followed by {' and '.join(sorted(owners))}"

    def events(self):
        """Prompts that no router saw: all routers know what each engine has of them."""
        for number, (_, path, body) in enumerate(kinds()):
            self.engines[number % 2].ask(path, body)
        self.cluster.agree()
        return ", ".join(f"{engine.name} {engine.due()} blocks" for engine in self.engines) + " on each of three routers"

    def lookups(self):
        return f"{self.compare(kinds())} lookups, each as the engine's tokens and its own prefix hit"

    def compare(self, prompts):
        """Every prompt: a router's tokens and lookups against the ledger, the engines' tokens, their answers and their counters."""
        for number, (name, path, body) in enumerate(prompts):
            engine = self.engines[number % 2]
            for router in self.routers:
                tokens, known = router.lookup(body, path)
                assert tokens == engine.tokens(path, body), f"{name}: {router.name} has other tokens than {engine.name}"
                due = {of.name: of.has(tokens, body.get("cache_salt")) for of in self.engines}
                assert known == due, f"{name}: {router.name} says {known}, the engines have {due}"
            hits = engine.hits()
            found = cached(engine.ask(path, {**body, "max_tokens": 1}))
            assert found == known[engine.name], f"{name}: {engine.name} found {found}, {router.name} said {known}"
            wait(f"{engine.name}'s counter", lambda: engine.hits() - hits == found, SOON)
        self.cluster.agree()
        return len(prompts)

    def routing(self):
        """Requests through the routers in turn: to the engine that has most, and what was predicted is what the engine found."""
        before, exact, wrong = self.accuracy(), 0, []
        asked = turns()
        for number, (name, path, body) in enumerate(asked):
            predicted, found, misplaced = self.ask(self.routers[number % 3], path, body)
            if misplaced:
                wrong.append(f"{name}: {misplaced}")
            if predicted == found:
                exact += 1
            else:
                wrong.append(f"{name}: predicted {predicted}, found {found}")
        assert not wrong, f"{len(asked) - exact} of {len(asked)} predicted wrongly: {'; '.join(wrong)}"
        self.cluster.agree()
        count, predicted, found, error = (now - then for now, then in zip(self.accuracy(), before, strict=True))
        # Of a prompt shorter than a block nothing is predicted.
        due = sum(len(self.engines[0].tokens(path, body)) > BLOCK for _, path, body in asked)
        assert (count, error) == (due, 0) and predicted == found, (count, due, predicted, found, error)
        return f"{exact} of {len(asked)} as predicted; the routers' own count: {count:.0f} predictions, {found:.0f} tokens, none wrong"

    def ask(self, router, path, body):
        """One request through a router: tokens that were predicted to be cached, tokens that were, and what is wrong with the place."""
        had = [(engine, engine.has(engine.tokens(path, body), body.get("cache_salt"))) for engine in self.engines]
        status, headers, answer = exchange(router.gateway, "POST", path, {**body, "return_token_ids": True})
        assert status == 200, f"{router.name}: {status} {answer}"
        record, predicted = self.record(router, headers)
        engine, has = next(pair for pair in had if pair[0].name == record["ending"]["endpoint"])
        found = cached(engine.told(body, json.loads(answer)))
        assert found == has == record["ending"]["cached_tokens"], (found, has, record["ending"])
        most = max(tokens for _, tokens in had)
        return predicted, found, None if has == most else f"{engine.name} has {has}, another {most}"

    def record(self, router, headers):
        """What became of a request, as another router tells it, and how many tokens were predicted to be cached."""
        other = self.routers[router.number % 3]
        record = wait("the record", lambda: (of := other.explain(headers["x-request-id"])).get("ending") and of, SOON)[0]
        decision = record["attempts"][-1]["decision"]
        place = [of["endpoint"] for of in decision["candidates"]].index(record["ending"]["endpoint"])
        prefix = next(of for of in decision["produced"] if of["holds"] == "prefix")
        return record, prefix["matched"][place] * prefix["block_tokens"]

    def other_apis(self):
        """Anthropic's messages and OpenAI's Responses, of which engines do not tell the tokens: blocks and hits do."""
        for number, (name, path, body) in enumerate(apis()):
            engine = self.engines[number % 2]
            prompt = self.straight(engine, path, body)
            tokens, _ = self.routers[0].lookup(body, path)
            assert len(tokens) == prompt, f"{name}: {len(tokens)} tokens, {engine.name} says {prompt}"
            engine.stored |= blocks_of(tokens)
            self.cluster.agree()
            for router in self.routers:
                self.known(engine, path, body, tokens)
                status, headers, answer = exchange(router.gateway, "POST", path, body)
                assert status == 200, f"{name}: {status} {answer}"
                record, predicted = self.record(router, headers)
                usage, ending = json.loads(answer)["usage"], record["ending"]
                found = cached(usage)
                assert found == predicted == ending["cached_tokens"] == engine.has(tokens), f"{name}: {predicted}, {usage}, {ending}"
                assert prompt_tokens(usage) == prompt == ending["input_tokens"], f"{name}: {prompt}, {usage}, {ending}"
        return ", ".join(name for name, _, _ in apis())

    def straight(self, engine, path, body):
        """Asks an engine itself. Gives the number of the prompt's tokens."""
        status, answer = call(engine.port, "POST", path, body)
        assert status == 200, f"{engine.name}: {status} {answer}"
        return prompt_tokens(json.loads(answer)["usage"])

    def accuracy(self):
        """The routers' live comparison: predictions, tokens predicted, found, and the differences."""
        names = ("predictions", "predicted_tokens", "found_tokens", "error_tokens")
        return [sum(metric(router.admin, f"quorate_prefix_{name}_total") or 0 for router in self.routers) for name in names]

    def evictions(self):
        """An engine that had to evict: what a router says that it still has of a prompt is what it finds, one by one."""
        engine = self.engines[1]
        filling = [(f"filling {n}", CHAT, said(("user", words(1200, 1000 + n)), max_tokens=1)) for n in range(engine.blocks // 32)]
        for _, path, body in filling:
            engine.ask(path, body)
        whole = part = gone = 0
        for number, (name, path, body) in enumerate(filling[::-1] + kinds()[1::2]):
            self.settled(engine, number)
            tokens, known = self.routers[number % 3].lookup(body, path)
            found = cached(engine.ask(path, {**body, "max_tokens": 1}))
            assert found == known[engine.name], f"{name}: {engine.name} found {found}, the router said {known}"
            most = (len(tokens) - 1) // BLOCK * BLOCK
            whole, part, gone = whole + (found == most), part + (0 < found < most), gone + (found == 0)
        assert whole and gone, (whole, part, gone)
        for router in self.routers:
            had = router.holders()[engine.name]["map"]["gpu"]
            assert had < engine.blocks, f"{router.name} has {had} blocks of an engine with {engine.blocks}"
        return f"of {whole + part + gone} prompts the engine had {whole} whole, {part} in part, {gone} not, each as looked up"

    def settled(self, engine, number):
        """Waits until all routers know a last prompt, of one block: what the engine evicted until then it announced before that."""
        mark = text([3000 + number, *range(4000, 4000 + BLOCK)], max_tokens=1)
        engine.ask(COMPLETIONS, mark)
        for router in self.routers:
            known = lambda: router.lookup(mark, COMPLETIONS)[1][engine.name] == BLOCK  # noqa: E731
            wait(f"{router.name} to know the latest prompt", known, SOON, every=0.05)

    def owner_dies(self):
        """kill -9 of the router that follows an engine, while the engine goes on."""
        engine = self.engines[0]
        owner = self.cluster.owner(engine)
        rest = [router for router in self.routers if router is not owner]
        stop(owner.name, signal.SIGKILL)
        fresh = [("after the owner", CHAT, said(("user", words(150, 700 + n)))) for n in range(4)]
        for _, path, body in fresh:
            engine.ask(path, body)
        self.cluster.agree(rest)
        owner.start()
        self.cluster.agree()
        for _, path, body in fresh:
            self.known(engine, path, body)
        return f"{owner.name} followed {engine.name}; {engine.due()} blocks on the others, and on {owner.name} when it was back"

    def known(self, engine, path, body, tokens=None):
        due = engine.has(tokens or engine.tokens(path, body), body.get("cache_salt"))
        for router in self.routers:
            said_of = router.lookup(body, path)[1][engine.name]
            assert said_of == due, f"{router.name} says {said_of} tokens, {engine.name} has {due}"

    def engine_restarts(self):
        """kill -9 of an engine under load, and a start with another hash: its blocks are forgotten everywhere, no request fails."""
        engine, other = self.engines[1], self.engines[0]
        old = [(path, body) for _, path, body in kinds()[1::2]]
        loads = [Load(router.gateway, pause=0.1) for router in self.routers]
        for load in loads:
            load.start()
        wait("load", lambda: all(load.good >= 5 for load in loads), SOON)
        engine.kill()
        marks = [load.good for load in loads]
        wait("the load to go on", lambda: all(load.good >= mark + 5 for load, mark in zip(loads, marks, strict=True)), SOON)
        engine.algorithm = None
        engine.start()
        engine.healthy()
        self.cluster.agree()
        for path, body in old:
            self.known(engine, path, body)
        for path, body in old:
            engine.ask(path, body)
        self.cluster.agree()
        for path, body in old:
            self.known(engine, path, body)
        given = engine.requests()
        wait("the restarted engine to be used", lambda: engine.requests() > given, SOON)
        end(loads)
        return f"forgotten and learnt anew on three routers, {good(loads)} requests meanwhile, none failed; {other.name} kept its blocks"

    def other_algorithm(self):
        """The restarted engine hashes by vLLM's default, the pool says sha256_cbor: every node names it, and routing goes on."""
        engine = self.engines[1]
        for router in self.routers:
            described = wait("the condition", lambda: "KvEventsHashMismatch" in (of := router.describe(engine.name)) and of, SOON)[0]
            line = next(line for line in described.splitlines() if "KvEventsHashMismatch" in line)
            assert "hashed by sha256 with vLLM's own seed" in line and "its pool says sha256_cbor" in line, line
            other = router.describe(self.engines[0].name)
            assert "Condition" not in other, other
        self.keyed(engine, "learnt own")
        self.route_some(800)
        return f"{self.compare(kinds())} lookups of it and its neighbour as the engines' own hits"

    def algorithms(self):
        """The same engines under other configs: a default-hash engine computed, and both learnt from their events."""
        for algorithm, keys in (("sha256", ("learnt own", "exact sha256")), (None, ("learnt own", "learnt own"))):
            self.cluster.schedule(algorithm)
            for engine, due in zip(self.engines, keys, strict=True):
                self.keyed(engine, due)
            self.cluster.agree()
            conditions = [bool(self.conditions(engine)) for engine in self.engines]
            assert conditions == [algorithm == "sha256", False], conditions
            compared = self.compare(kinds())
            self.route_some(900 if algorithm else 950)
        return f"engineHashAlgorithm sha256 and none: {compared} lookups each as the engines' own hits"

    def route_some(self, seed):
        """New prompts through the routers, then their next turns: predictions are what the engine finds."""
        for number in range(6):
            body = said(("user", words(150, seed + number)), **({"cache_salt": "tenant-c"} if number == 5 else {}))
            more = [{"role": "assistant", "content": words(20, seed)}, {"role": "user", "content": words(20, seed + 1)}]
            for turn, asked in enumerate((body, {**body, "messages": body["messages"] + more})):
                predicted, found, misplaced = self.ask(self.routers[(number + turn) % 3], CHAT, asked)
                assert predicted == found and not misplaced, (number, turn, predicted, found, misplaced)

    def link(self, engine):
        return self.routers[0].holders()[engine.name].get("link") or {}

    def keyed(self, engine, due):
        """Waits until this is how its owner says that the engine's blocks are named."""

        def same():
            link = self.link(engine)
            said_of = f"{link.get('keys')} {link.get('scheme')}"
            assert said_of == due, f"{engine.name}'s keys are {said_of}"
            return True

        wait(f"{engine.name}'s keys to be {due}", same, SOON, every=0.2)

    def conditions(self, engine):
        return self.link(engine).get("conditions")
