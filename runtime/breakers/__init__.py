"""Circuit breakers for downstream calls: pybreaker's counting, shared by all cells of an app."""
