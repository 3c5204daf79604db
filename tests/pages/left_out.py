"""What the tests do not type, each with the reason. An entry that fits nothing any more fails."""

from __future__ import annotations

from pages.snippets import Snippet

_INSTALLED = "the tests run in an environment that has it; that its extras exist is looked at"
_OWN_TEST = "has a test of its own"
_ITSELF = "would run these tests"
_NO_SYSTEMD = "nothing here is started by systemd; tests/pages/test_deployment.py runs what its unit starts"
_HOURS = "takes half an hour; CI runs it for three minutes, and its options are looked at"
_HOW_TO = "tests/test_examples.py types what the how-to pages say"

EXAMPLES = ("gpu-workers.md", "data-in-regions.md", "websocket-fan-in.md", "nightly-batch.md")

#: (beginning of the page's name, beginning of the command) -> why it is not typed.
COMMANDS = {
    ("README.md", "make demo"): f"the demo {_OWN_TEST}, tests/demo",
    ("README.md", "make test"): _ITSELF,
    ("docs/quickstart.md", "pip install"): _INSTALLED,
    ("docs/OPERATOR_GUIDE.md", "systemctl "): _NO_SYSTEMD,
    ("docs/explanation/promises.md", "python -m tests.faults"): _HOURS,
    ("docs/reference/events.md", "celery -A proj events"): f"does not end by itself, and {_OWN_TEST}",
    **{(f"docs/how-to/{page}", ""): _HOW_TO for page in EXAMPLES},
}

#: (page, kind) -> why such snippets are only parsed, or looked at by a test of their own.
KINDS = {
    ("README.md", "text"): "a drawing",
    ("docs/explanation/how-it-works.md", "text"): "a formula",
    (
        "docs/OPERATOR_GUIDE.md",
        "yaml",
    ): "tests/pages/test_deployment.py runs what Kubernetes would run",
    ("docs/OPERATOR_GUIDE.md", "ini"): _NO_SYSTEMD,
    ("docs/reference/cli.md", "json"): "the commands answer so, in tests/cli/test_json_shapes.py",
    ("docs/how-to/nightly-batch.md", "sql"): "its example asks it, in tests/test_examples.py",
}


def entry_of(snippet: Snippet, command: str) -> tuple[str, str] | None:
    """The entry that leaves a command out, if one does."""
    fitting = (each for each in COMMANDS if snippet.page.startswith(each[0]) and command.startswith(each[1]))
    return next(fitting, None)
