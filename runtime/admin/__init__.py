"""What the launcher serves over HTTP: probes and the tree."""
