"""A nats-server of our own, for trying things out and for tests."""
