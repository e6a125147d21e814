"""One process at a time holds a lock; another one waits or is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from fractal_model.common.locks import LockHeldError, hold_lock, is_held, wait_for_lock


def test_a_waiting_process_gets_the_lock_when_the_other_one_ends(tmp_path):
    file = tmp_path / "new" / "lock"
    order: SimpleQueue[str] = SimpleQueue()

    def second() -> None:
        with wait_for_lock(file, lambda: order.put("waits")):
            order.put("second")

    with ThreadPoolExecutor(1) as other:
        with hold_lock(file):
            done = other.submit(second)
            assert order.get(timeout=60) == "waits"
            order.put("first ends")
        done.result(timeout=60)
    assert [order.get() for _ in range(2)] == ["first ends", "second"]
    assert not is_held(file)


def test_a_free_lock_is_held_at_once(tmp_path):
    with wait_for_lock(tmp_path / "lock", lambda: pytest.fail("it waits")):
        with pytest.raises(LockHeldError, match="another process"), hold_lock(tmp_path / "lock"):
            pass
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")


def test_an_error_within_the_block_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), wait_for_lock(tmp_path / "lock", lambda: None):
        raise KeyError
    assert not is_held(tmp_path / "lock")
