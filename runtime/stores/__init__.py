"""What outlives a cell on the server: attempts and the state of breakers, in NATS KV."""
