"""A small HTTP server that answers as vLLM does, from a tiny model on the CPU, and fails where a test tells it to."""

import json
import multiprocessing
import threading
import time
import urllib.request
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

DROP = object()  # a planned answer: close the connection without a word


class VLLMDouble:
    """Serves `base`, a causal LM, with the adapters that it is told to load.

    planned: what to answer the next requests for completions with, `(status, body)` or `DROP`, before the truth.
    after_load: called when an adapter has been loaded.
    root: the base that it says it serves.
    delay: seconds that each completion takes besides; one is made after the other.
    """

    def __init__(self, base, tokenizer):
        self.base, self.tokenizer = base, tokenizer
        self.adapters, self.requests, self.planned = {}, [], deque()
        self.runtime_lora, self.processed_logprobs, self.beyond_vocabulary = True, True, False
        self.after_load = lambda: None
        self.root, self.delay = "tiny", 0.0
        self._lock = threading.Lock()
        self._server = None
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Answer requests; after `stop`, at the same address and without any adapter, as a server started anew."""
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                base = {"id": double.root, "root": double.root, "parent": None}
                adapters = [{"id": name, "root": path, "parent": double.root} for name, path in double.adapters.items()]
                bodies = {"/v1/models": {"data": [*adapters, base]}, "/requests": double.requests}
                self._send(200, bodies.get(self.path, {}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = double.answer(self.path, body, dict(self.headers))
                if answer is DROP:
                    self.close_connection = True
                else:
                    self._send(*answer)

            def _send(self, status, body):
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self):
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.adapters.clear()

    def answer(self, path, body, headers):
        self.requests.append((path, body, headers))
        with self._lock:
            if path == "/v1/load_lora_adapter" and self.runtime_lora:
                return self._load(body["lora_name"], body["lora_path"])
            if path == "/v1/unload_lora_adapter" and self.runtime_lora:
                known = self.adapters.pop(body["lora_name"], None)
                return (200, "Success") if known else _error(404, "The lora adapter cannot be found.")
            if path != "/v1/completions":
                return 404, {"detail": "Not Found"}
            if self.planned:
                return self.planned.popleft()
            if body["model"] not in self.adapters:
                return _error(404, f"The model `{body['model']}` does not exist.")
            return 200, self._complete(body)

    def sent(self, path):
        return [body for where, body, _ in self.requests if where == path]

    def _load(self, name, path):
        from peft import PeftModel

        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        if not isinstance(self.base, PeftModel):
            self.base = PeftModel.from_pretrained(self.base, path, adapter_name=name).eval()
        elif name not in self.base.peft_config:
            self.base.load_adapter(path, name)
        self.adapters[name] = path
        self.after_load()
        return 200, "Success"

    def _complete(self, body):
        time.sleep(self.delay)
        self.base.set_adapter(body["model"])
        assert body["ignore_eos"]  # the engine names every token that ends a completion
        sampling = Sampling(
            body["max_tokens"],
            temperature=body["temperature"] if self.processed_logprobs else 1.0,
            top_k=body["top_k"],
            top_p=body["top_p"],
            min_p=body["min_p"],
        )
        engine = _Stopping(self.base, self.tokenizer, body["stop_token_ids"])
        completion = engine.generate([body["prompt"]], sampling, [body["seed"]])[0]
        support = completion.support or [[]] * len(completion.ids)
        cut = [token for token in range(len(self.tokenizer)) if sampling.truncated]
        listed = [
            {f"token_id:{token}": -1.0 for token in allowed}
            | {f"token_id:{token}": -9999.0 for token in cut[: max(body["logprobs"] - len(allowed), 0)] if token not in allowed}
            for allowed in ([int(token) for token in row] for row in support)
        ]  # fmt: skip
        ids = [len(self.tokenizer)] * len(completion.ids) if self.beyond_vocabulary else completion.ids
        choice = {
            "token_ids": ids,
            "finish_reason": "stop" if completion.stopped else "length",
            "logprobs": {"token_logprobs": completion.logprobs, "top_logprobs": listed},
        }
        return {"choices": [choice]}


class VLLMProcess:
    """A `VLLMDouble` in a process of its own, which can be killed and started again at the same address.

    settings: attributes of the double.
    """

    def __init__(self, **settings):
        self.settings, self.port = settings, 0
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Start it without any adapter; `ready` waits for it."""
        self._told, telling = _PROCESSES.Pipe(duplex=False)
        self.process = _PROCESSES.Process(target=_serve, args=(telling, self.port, self.settings), daemon=True)
        self.process.start()
        return self

    def ready(self):
        self.port = self._told.recv()
        return self

    def kill(self):
        self.process.kill()
        self.process.join()

    def sent(self, path):
        with urllib.request.urlopen(f"{self.url}/requests") as answer:
            return [body for where, body, _ in json.load(answer) if where == path]


_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "peft"])


def _serve(telling, port, settings):
    from tiny import make_model, make_tokenizer

    settings = dict(settings)
    tokenizer = make_tokenizer()
    double = VLLMDouble(make_model(tokenizer, seed=settings.pop("seed", 0)), tokenizer)
    double.port = port
    for name, value in settings.items():
        setattr(double, name, value)
    double.start()
    telling.send(double.port)
    threading.Event().wait()


class _Stopping(TransformersEngine):
    """Stops at the ids of a request alone."""

    def __init__(self, model, tokenizer, stop_ids):
        super().__init__(model, tokenizer)
        self.stop_ids = stop_ids

    def _stop_ids(self, sampling):
        return self.stop_ids


def _error(status, message):
    return status, {"error": {"message": message, "code": status}}
