"""Names of span attributes: OpenTelemetry's messaging conventions as of version 1.43, and our own.

Those of messaging are not stable yet and live in a private module of the semantic-conventions package, so
that they are written out here; a test compares them with that package.
"""

from __future__ import annotations

SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION_NAME = "messaging.destination.name"
DESTINATION_TEMPLATE = "messaging.destination.template"
CONSUMER_GROUP = "messaging.consumer.group.name"
MESSAGE_ID = "messaging.message.id"
BATCH_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
SERVICE_NAME = "service.name"
SERVICE_INSTANCE = "service.instance.id"

NATS = "nats"

# Ours: of a delivery's place in its stream, and of what became of it.
ACTOR = "understudy.actor"
CELL = "understudy.cell"
GENERATION = "understudy.cell.generation"
STREAM = "understudy.stream"
SEQUENCE = "understudy.sequence"
ATTEMPT = "understudy.attempt"
MAX_ATTEMPTS = "understudy.max_attempts"
DELAY_SECONDS = "understudy.delay_seconds"
DELIVERY_COUNT = "understudy.delivery_count"
TAKEN_OVER = "understudy.taken_over"
REASON = "understudy.reason"
ERROR = "understudy.error"
LETTER_ID = "understudy.dead_letter.id"
BREAKER = "understudy.breaker"
