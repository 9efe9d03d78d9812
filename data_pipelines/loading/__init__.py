"""From shards to batches: read, filter, mix, crop, augment."""
