"""The bounded cache."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.cache import ArrayKey, Cache, _keys, array_key


@given(size=st.integers(1, 5), keys=st.lists(st.integers(0, 8), max_size=40))
def test_keeps_exactly_the_keys_used_last(size: int, keys: list[int]) -> None:
    cache: Cache[object] = Cache(size)
    recent: list[int] = []
    made: list[int] = []
    for key in keys:
        before = len(made)
        cache.get(key, lambda key=key: made.append(key) or key)
        assert (len(made) == before) == (key in recent)
        recent = [*(k for k in recent if k != key), key][-size:]
        assert len(cache) == len(recent)
    cache.clear()
    assert len(cache) == 0


def test_threads_get_one_and_the_same_value() -> None:
    cache: Cache[object] = Cache(4)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: cache.get("key", object), range(200)))
    assert len({id(value) for value in values}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_forked_child_starts_afresh_even_if_the_lock_was_held() -> None:
    cache: Cache[int] = Cache(2)
    cache.get("key", lambda: 1)
    with cache._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if cache.get("key", lambda: 2) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get("key", lambda: 3) == 1


def test_arrays_are_told_apart_by_shape_type_and_every_value() -> None:
    array = np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    same, key = array.copy(), ArrayKey(array)
    assert key == ArrayKey(same)
    assert hash(key) == hash(ArrayKey(same))
    assert key != ArrayKey(array.reshape(2, 3000))
    assert key != ArrayKey(array.view(np.int32))
    array[1234, 1] += 1  # the key keeps the values that it was made from
    assert key == ArrayKey(same)
    assert key != ArrayKey(array)
    assert ArrayKey(same[::2]) == ArrayKey(same[::2].copy())


def test_keys_of_read_only_arrays_are_made_once() -> None:
    array = np.arange(6.0)
    assert array_key(array) is not array_key(array)
    array.setflags(write=False)
    key = array_key(array)
    assert array_key(array) is key
    assert key == ArrayKey(np.arange(6.0))
    view = array[:]  # somebody else may own a writeable array behind a view
    assert array_key(view) is not array_key(view)
    number = id(array)
    assert number in _keys
    del array, view
    assert number not in _keys
