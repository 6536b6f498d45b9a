"""Opens the app's KV buckets, which `understudy run` makes before any cell starts."""

from __future__ import annotations

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.kv import KeyValue

from understudy.actors.errors import BrokerError


async def open_bucket(client: Client, bucket: str) -> KeyValue:
    """Bind to a bucket, which exists.

    Args:
        client: a connection.
        bucket: the bucket's name.

    Raises:
        BrokerError: there is no such bucket, or the server did not answer.
    """
    try:
        return await client.jetstream().key_value(bucket)
    except nats.js.errors.BucketNotFoundError as error:
        raise BrokerError(
            f"KV bucket {bucket} is gone from the server; start 'understudy run' anew, which makes it"
        ) from error
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise BrokerError(
            f"KV bucket {bucket} can't be opened: {str(error) or type(error).__name__}"
        ) from error
