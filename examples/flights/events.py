"""What the actors of this example are told, and tell each other."""

from understudy import Event


class Departed(Event, subject="flights.departed"):
    """A flight has left, or was cancelled: then it has no delay."""

    carrier: str
    flight: int
    origin: str
    dest: str
    scheduled: str
    delay_minutes: float | None


class Delayed(Event, subject="flights.delayed"):
    """A flight has left more than an hour late."""

    carrier: str
    flight: int
    origin: str
    scheduled: str
    delay_minutes: float

    @property
    def booking(self) -> str:
        """Which booking it upsets: one for each flight."""
        return f"{self.carrier}{self.flight}-{self.origin}-{self.scheduled}"


class Charge(Event, subject="flights.charge"):
    """What a new seat costs more is to be charged."""

    booking: str
    amount: int


class Charged(Event, subject="flights.charged"):
    """It is charged. The receipt is the number of the charge in the service's ledger."""

    booking: str
    receipt: int


class Declined(Event, subject="flights.declined"):
    """It can't be charged."""

    booking: str
    reason: str
