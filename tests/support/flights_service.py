"""The example's service in a thread of the test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from understudy.examples.flights.service import Service


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Serve until the block ends."""
    with service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        service.shutdown()
        thread.join()
