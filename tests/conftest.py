"""What the tests of runs that are killed, stopped and attacked share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks children that have everything imported."""
    process = Forks(tmp_path_factory.mktemp("forks"))
    yield process
    process.close()
