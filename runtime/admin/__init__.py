"""Probes and the read-only view of a running tree over HTTP."""
