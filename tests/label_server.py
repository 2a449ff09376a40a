"""A server of the page to be killed: each line of the input forks one, and its process id and address are printed.

Forking a process that has imported everything takes milliseconds, so twenty servers can be killed in a test.
"""

import os
import sys

from hf_rlhf.feedback import FeedbackStore
from hf_rlhf.feedback.page import Desk, Server, make_app  # noqa: F401
from hf_rlhf.feedback.page.server import require_extra


def main(file, port):
    require_extra()
    import uvicorn.protocols.http.h11_impl  # noqa: F401

    for _ in sys.stdin:
        if os.fork() == 0:
            with Server(Desk(FeedbackStore(file)), port=port) as server:
                print(os.getpid(), server.address, flush=True)
                while server.wait(1):
                    pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
