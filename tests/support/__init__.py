"""What tests share, importable in other processes as `support`."""
