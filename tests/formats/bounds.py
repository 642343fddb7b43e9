"""What a test may take."""

import signal
from contextlib import contextmanager


@contextmanager
def patience(seconds):
    """Raises TimeoutError in what takes longer, where the platform has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
