"""What a user writes against: actors, events, policies and errors, without any I/O."""
