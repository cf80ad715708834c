"""How hypothesis looks: quickly in every run, and long with ``pytest --hypothesis-profile=deep``."""

from hypothesis import settings

# No deadline for one example: a machine that is busy with something else is not a bug.
settings.register_profile("tests", deadline=None)
settings.register_profile("deep", deadline=None, max_examples=5000)
settings.load_profile("tests")
