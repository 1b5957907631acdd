"""Ranks, collectives, signals, exit statuses, checkpoints, the run folder, progress, seeding and logs."""
