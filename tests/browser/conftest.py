"""A headless Chromium, and pages of stores that the server of this package serves."""

import pytest
from find_browser import find_browser

from hf_rlhf.feedback import FeedbackStore
from hf_rlhf.feedback.page import Desk, Server

HOW = "Install Chromium (apt-get install chromium), or name one by HF_RLHF_BROWSER; `make test-browser` says more"


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("uvicorn", reason="the extra label is not installed")
    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser is installed. {HOW}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


class Labeller:
    """One person in a browser of their own.

    Attributes:
        page: Playwright's.
        complaints: of the console, errors of scripts, and requests to other places.
    """

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints = []
        origin = address.split("/?")[0]
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: request.url.startswith(origin) or self.complaints.append(request.url))
        self.address = address

    def open(self, name=None):
        self.page.goto(self.address)
        if name is not None:
            self.page.fill("input[name=name]", name)
            self.page.keyboard.press("Enter")
            # The page loads itself again; before that, the heading is still that of the question for a name.
            self.page.wait_for_selector("input[name=name]", state="detached")
        self.page.wait_for_selector("h1:not(.faint)")
        return self

    def press(self, *keys):
        """Press keys that answer the task that is shown, after it has settled, and wait for the next screen."""
        page = self.page
        page.wait_for_timeout(160)
        page.evaluate("document.querySelector('#main').firstElementChild.dataset.old = ''")
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_selector("[data-old]", state="detached")

    def wait_saved(self):
        self.page.wait_for_selector("body[data-state=saved]", state="attached")

    @property
    def status(self):
        return self.page.inner_text("#status")

    @property
    def replies(self):
        return [each.inner_text() for each in self.page.query_selector_all(".reply-text")]


@pytest.fixture
def serve(store):
    """Start a server of the store; gives it."""
    running = []

    def start(**options):
        server = Server(Desk(store, **options), port=0).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def labeller(browser, serve):
    """Open the page for a person; gives the person."""
    people = []

    def visit(server=None, name="Ann", **options):
        person = Labeller(browser, (server or serve()).address, **options)
        people.append(person)
        return person.open(name)

    yield visit
    for person in people:
        person.context.close()
