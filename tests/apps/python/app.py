"""A page that says who answers, with one dependency beside Flask."""

import humanize
from flask import Flask

app = Flask(__name__)


@app.get("/")
def page():
    return f"Hello from the Python sample: a build of {humanize.naturalsize(19_000_000)}\n"
