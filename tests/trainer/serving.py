"""A real HTTP server that serves a checkpoint in both dialects, and misbehaves when it is told to.

    python serving.py CHECKPOINT

prints the port of its door. ``POST /open`` there opens a server of its own, with the checkpoint's weights, and answers
with its URL; ``POST /plan`` at that one says what becomes of the next calls, ``GET /log`` what was asked.
"""

import json
import math
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy, without_progress_bars
from grpokit.trainer.sampling import Sampling

UPDATES = ("/collective_rpc", "/update_weights_from_disk")
# How an answer is spoilt before it is written: (ids, logps, finish) to the same.
SPOILS = {
    "more logps": lambda ids, logps, finish: (ids, [*logps, -1.0], finish),
    "nan": lambda ids, logps, finish: (ids, [math.nan, *logps[1:]], finish),
    "null": lambda ids, logps, finish: (ids, [None, *logps[1:]], finish),
    "positive": lambda ids, logps, finish: (ids, [0.5, *logps[1:]], finish),
    "foreign id": lambda ids, logps, finish: ([10**6, *ids[1:]], logps, finish),
    "text id": lambda ids, logps, finish: (["a", *ids[1:]], logps, finish),
    "no tokens": lambda ids, logps, finish: ([], [], finish),
    "too long": lambda ids, logps, finish: ([5] * 99, [-1.0] * 99, "length"),
    "goes on": lambda ids, logps, finish: ([1, 1], [-1.0, -1.0], finish),
    "abort": lambda ids, logps, finish: (ids[:1], logps[:0], "abort"),
    "odd finish": lambda ids, logps, finish: (ids, logps, "tired"),
    "ended": lambda ids, logps, finish: ([5, 1], [-1.0, -1.0], "length"),
    "full": lambda ids, logps, finish: ([5, 6], [-1.0, -1.0], "length"),
}


@dataclass
class Served:
    """One server's state."""

    policy: Policy
    plan: dict[str, list[str]] = field(default_factory=lambda: {"sample": [], "update": []})
    log: list[dict] = field(default_factory=list)
    version: str = "default"
    answered: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False

    def next(self, kind):
        with self.changed:
            return self.plan[kind].pop(0) if self.plan[kind] else "fine"

    def sample(self, prompt, seed, how, longest):
        """Ids, log-probs and how it ended; a body's parameters are named alike in both dialects."""
        assert how["stop_token_ids"] == [self.policy.tokenizer.eos_token_id]
        top_k, stop = max(how["top_k"], 0), tuple(how["stop"])
        sampling = Sampling(longest, temperature=how["temperature"], top_p=how["top_p"], top_k=top_k, stop=stop)
        with self.changed:  # one at a time
            (made,) = InProcess(self.policy).generate([prompt], [seed], sampling)
        return made.token_ids, made.logps, made.finish

    def update(self, directory, version):
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(directory)
        with self.changed:
            self.policy.model.load_state_dict(model.state_dict())
            self.version = version


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *words):
        pass

    @property
    def state(self):
        return self.server.state

    def do_GET(self):
        if self.path == "/log":
            self.say(self.state.log)
        else:
            self.say(
                None if self.path == "/health" else {"detail": "Not Found"}, 200 if self.path == "/health" else 404
            )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
        if self.state.closed:
            self.close_connection = True
        elif self.path == "/plan":
            self.state.plan |= body
            self.say(None)
        elif self.path == "/reset_prefix_cache":
            self.say(None)
        elif self.path in UPDATES:
            self.update(body)
        elif self.path in ("/v1/completions", "/generate"):
            self.sample(body)
        else:
            self.say({"detail": "Not Found"}, 404)

    def update(self, body):
        kind = self.state.next("update")
        self.state.log.append({"path": self.path, "body": body, "kind": kind})
        told = body if self.path == UPDATES[1] else body["kwargs"] | {"model_path": body["kwargs"]["weights_path"]}
        version = told.get("weight_version", "")
        if kind == "no success":
            self.say({"success": False, "message": "out of memory"})
            return
        if kind == "claim":  # says that it did
            self.state.version = version
        elif kind == "fine":
            self.state.update(told["model_path"], version)
        elif kind != "forget" and self.lost(kind):
            return
        self.say({"success": True, "message": "ok"} if self.path == UPDATES[1] else {"results": [None]})

    def sample(self, body):
        state, kind = self.state, self.state.next("sample")
        native = self.path == "/generate"
        how = body["sampling_params"] if native else body
        prompt = body["input_ids"] if native else body["prompt"]
        seed = how["sampling_seed" if native else "seed"]
        state.log.append({"path": self.path, "prompt": prompt, "seed": seed, "kind": kind, "body": body})
        if kind == "later":  # than three others
            with state.changed:
                due = state.answered + 3
                overtaken = state.changed.wait_for(lambda: state.answered >= due, timeout=10)
            if not overtaken and self.lost("400"):
                return
        elif kind not in ("fine", "two", "no ids", *SPOILS) and self.lost(kind):
            return
        made = state.sample(prompt, seed, how, how["max_new_tokens" if native else "max_tokens"])
        ids, logps, finish = SPOILS.get(kind, lambda *same: same)(*made)
        if native:
            rows = [[logp, token, None] for logp, token in zip(logps, ids, strict=False)]
            about = {"finish_reason": {"type": finish}, "output_token_logprobs": rows, "weight_version": state.version}
            said = {"text": "", "output_ids": ids, "meta_info": about}
        else:
            choice = {"index": 0, "text": "", "logprobs": {"token_logprobs": logps}, "finish_reason": finish}
            choice |= {} if kind == "no ids" else {"token_ids": ids}
            said = {"object": "text_completion", "choices": [choice] * (2 if kind == "two" else 1)}
        self.say(said)
        with state.changed:
            state.answered += 1
            state.changed.notify_all()

    def lost(self, kind):
        """Whether the call is lost in this way: what came of it is sent, or nothing."""
        if kind.isdecimal():
            self.say({"error": {"message": f"as planned: {kind}"}}, int(kind))
        elif kind == "no json":
            self.say("<html>", plain=True)
        elif kind in ("cut", "cut unnoticed"):
            self.say({"choices": [1, 2, 3]}, cut=True, length=kind == "cut")
        else:
            if kind == "hang":
                with self.state.changed:
                    self.state.changed.wait_for(lambda: self.state.closed, timeout=60)
            elif kind == "die":
                self.state.closed = True
                self.server.server_close()
            else:
                assert kind == "drop", kind
            self.close_connection = True
        return True

    def say(self, body, status=200, *, plain=False, cut=False, length=True):
        data = b"" if body is None else body.encode() if plain else json.dumps(body).encode()
        self.send_response(status)
        if length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection |= cut


class Door(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_POST(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.state = Served(self.server.policy.frozen())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        data = json.dumps(f"http://127.0.0.1:{server.server_address[1]}").encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)


def main(checkpoint):
    torch.set_num_threads(1)
    door = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    door.policy = Policy(AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint))
    print(door.server_address[1], flush=True)
    # It ends with whoever started it.
    threading.Thread(target=door.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # without waiting for calls that hang


if __name__ == "__main__":
    main(Path(sys.argv[1]))
