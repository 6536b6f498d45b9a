"""The programs that are measured, each a process of its own, so that each pays for its own CPU."""
