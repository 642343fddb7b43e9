"""A hub in a process of its own, one for the whole run, and a client that is told that it is the hub."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from pytest_deaddir.source import remote
from remote.helpers import Hub


@pytest.fixture(scope="session")
def _served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    script = Path(__file__).with_name("server.py")
    command = [sys.executable, str(script), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()  # the next one sees these
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield folder, tuple(map(int, process.stdout.readline().split()))
            process.stdin.close()
        close_session()


@pytest.fixture
def hub(_served, monkeypatch, tmp_path):
    """The hub, good and empty, and huggingface_hub directed at it, without a token, and with short waits."""
    folder, ports = _served
    for repository in folder.iterdir():
        shutil.rmtree(repository)
    hub = Hub(folder, ports)
    hub.behave()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.005)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub
