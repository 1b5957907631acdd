"""Used by every package: errors, command lines from dataclasses, atomic file writes, worker processes, resource limits."""
