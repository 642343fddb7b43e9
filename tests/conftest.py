"""Everything here runs without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["pytester"]
