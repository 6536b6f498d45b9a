"""What runs the actors: cells, supervisors, JetStream, telemetry and the command line."""
