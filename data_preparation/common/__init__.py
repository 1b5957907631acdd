"""Everyone's floor: errors, command lines from dataclasses, whole files, worker processes, limits of the machine."""
