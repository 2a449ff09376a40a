"""Pages as a browser would see them, and a text that a page has to escape."""

from html.parser import HTMLParser

HOSTILE = '<script>alert(1)</script> {{ 7*7 }} {% raw %} "quoted" & <b>bold</b>'


class Page(HTMLParser):
    """Collects the tags and the text that a browser would see."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data
