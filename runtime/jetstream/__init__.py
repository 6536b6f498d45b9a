"""Everything said to a JetStream server, and nothing else."""
