"""A Hub on this machine: it keeps what is pushed, or answers in the way it is told to."""

import base64
import json
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_CANARYcanaryCANARYcanaryCANARYcan"


def environment_for(hub, folder, token=TOKEN):
    """Variables for a process of its own, as the Hub's library reads its address when it is imported."""
    address = hub if isinstance(hub, str) else hub.address
    variables = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf_home")}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("HF_TOKEN", None)
    return variables | ({"HF_TOKEN": token} if token else {})


class FakeHub(ThreadingHTTPServer):
    """Stand-in for the Hub, which answers with `status` from the `after`-th request on.

    None is a Hub that works, "hang" and "cut" do not.
    """

    daemon_threads = True

    def __init__(self, status=None, after=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.after = status, after
        self.requests, self.files, self.tokens, self.received = [], {}, set(), b""

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer({"error": "there is no such repository"}, status=404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received += body
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.refused():
            return
        if self.path == "/api/repos/create":
            name = json.loads(body)
            full = f"{name.get('organization') or 'someone'}/{name['name']}"
            self.answer({"url": f"{self.server.address}/{full}", "name": full, "id": full})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.server.address}/someone/model/commit/1", "commitOid": "1" * 40, "success": True}
            )
        else:
            self.answer({})

    def refused(self):
        hub = self.server
        hub.requests.append(self.path)
        if not self.headers.get("Authorization"):
            self.answer({"error": "Invalid username or password."}, status=401)
            return True
        if hub.status is None or len(hub.requests) <= hub.after:
            return False
        if hub.status == "hang":
            time.sleep(30)
        elif hub.status == "cut":
            self.connection.close()
        else:
            self.answer({"error": "refused on purpose"}, status=hub.status)
        return True

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def fake_hub(status=None, after=0):
    """A running `FakeHub`."""
    hub = FakeHub(status, after)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
