"""Where a run runs: in shards, under Slurm."""
