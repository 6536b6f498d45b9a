"""The control plane and the supervisors: who starts, watches, restarts and stops every process."""
