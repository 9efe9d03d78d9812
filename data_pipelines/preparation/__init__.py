"""Turn downloads into shards, resumable and in parallel."""
