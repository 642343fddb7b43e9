"""What the tests of single modules share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _the_same_numbers_in_every_run():
    """Where a test's file imports torch, what the test draws does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
