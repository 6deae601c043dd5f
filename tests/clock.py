"""A clock in the test's hand."""


class Clock:
    """Seconds that pass when a test says so: it sets `now`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
