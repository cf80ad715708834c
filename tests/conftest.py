"""How hypothesis looks: quickly in every run, and long with ``pytest --hypothesis-profile=deep --timeout=0``.

And signals: whoever runs the tests with `nohup` or in the background of a script hands ignored ones down to them.
"""

import signal

import pytest
from hypothesis import settings

DEEP_EXAMPLES = 5000

# No deadline for one example: a machine that is busy with something else is not a bug.
settings.register_profile("tests", deadline=None)
settings.register_profile("deep", deadline=None, max_examples=DEEP_EXAMPLES)
settings.load_profile("tests")

if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that names a number of examples for every run's sake is deep, too, when that is asked for."""
    if config.getoption("--hypothesis-profile") != "deep":
        return
    for item in items:
        test = getattr(item, "obj", None)
        machine = getattr(test, "__self__", None)  # a state machine's test is a method; its settings are its class's
        for owner, name in ((test, "_hypothesis_internal_use_settings"), (type(machine), "settings")):
            own = getattr(owner, name, None)
            if isinstance(own, settings) and own.max_examples < DEEP_EXAMPLES:
                setattr(owner, name, settings(own, max_examples=DEEP_EXAMPLES))
