"""Where exports are tested."""

import pytest


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """The working folder, where `datasets` finds no network and no cache of others."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
