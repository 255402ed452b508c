"""Settings that every test shares."""

import os

from hypothesis import settings

# Before any test imports a library that reads them: no test may reach a model hub or open a window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The first call of a torch operation can take seconds, so a time limit per example would fail at random.
settings.register_profile("gcgkit", deadline=None, max_examples=25)
settings.load_profile("gcgkit")
