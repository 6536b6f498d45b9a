"""Supervisors: who is restarted, when, and who gives up."""
