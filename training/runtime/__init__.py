"""What a run stands on: ranks, collectives, interruption, checkpoints, its folder, progress, seeding, logs."""
