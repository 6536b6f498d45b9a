"""What outlives a cell on the server: attempts, in NATS KV."""
