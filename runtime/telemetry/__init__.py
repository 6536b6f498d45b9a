"""Log entries and trace ids, the same in every process."""
