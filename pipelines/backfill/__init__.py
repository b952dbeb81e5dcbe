"""The backfill of the join: files by day from bounded inputs."""
