from __future__ import annotations


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "slow: makes virtual environments or runs for more than ten seconds")
