"""Settings that every test shares."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports a library that reads them: no test may reach a model hub or open a window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples every time: what is found by chance is to be found while working, not in somebody else's run.
# The first call of a torch operation can take seconds, so a time limit per example would fail at random.
settings.register_profile("gcgkit", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("gcgkit")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Prepared clips and a model to start training from."""
    import prepared  # torch and diffusers are not loaded for tests that do without

    return prepared.workplace(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A pipeline folder that colours a frame in milliseconds."""
    import tiny  # as above

    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline(folder / "source").save_pretrained(folder / "tiny")
    return folder / "tiny"
