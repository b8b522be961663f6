"""The collector of garbage rests while programs are traced, and only then."""

import gc

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
