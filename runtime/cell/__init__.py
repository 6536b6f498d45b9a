"""The process that hosts one actor, and the file that outlives it."""
