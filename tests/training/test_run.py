"""When a run stops: what the processes agreed on, and nothing that came after."""

import os
import signal

from handjax.distributed import processes
from handjax.training.run import Stop


def test_a_signal_during_the_agreement_waits_for_the_next_step(monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    stop = Stop()
    stop.listen()

    def agree(yes: bool, after: object) -> bool:
        # The handler runs before the gather returns.
        os.kill(os.getpid(), signal.SIGTERM)
        return yes

    try:
        monkeypatch.setattr(processes, "all_agree", agree)
        assert not stop.step(), "the other processes go on, so this one has to as well"
        assert stop.step() and stop.reason == "SIGTERM"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_one_that_was_told_nothing_stops_with_the_others(monkeypatch):
    monkeypatch.setattr(processes, "all_agree", lambda yes, after: False)
    stop = Stop()
    assert stop.step() and "another process" in stop.reason


def test_steps_are_counted():
    stop = Stop(after=2)
    assert [stop.step(), stop.step()] == [False, True]
    assert stop.reason == "--stop_after"
