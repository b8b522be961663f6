"""The collector of garbage rests while programs are traced, and only then."""

import ctypes
import gc

import psutil
import pytest

from popjax.host import garbage


@pytest.fixture(autouse=True)
def collecting():
    gc.enable()
    yield
    gc.enable()


def test_the_collector_rests_within_the_context():
    with garbage.paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_works_again_after_an_error():
    @garbage.paused()
    def fail():
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_a_collector_that_the_user_has_switched_off_stays_off():
    gc.disable()
    with garbage.paused():
        pass
    assert not gc.isenabled()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_memory_that_was_freed_is_returned_to_the_system():
    """Pieces too small to be mapped one by one, below others that stay."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(60_000) for _ in range(4_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 60_000)
    process = psutil.Process()
    for piece in pieces[:-1]:
        libc.free(piece)
    before = process.memory_info().rss
    garbage.give_back()
    assert process.memory_info().rss < before - 200e6
    libc.free(pieces[-1])
