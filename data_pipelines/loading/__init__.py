"""Make batches of shards: read, filter, mix, crop, augment."""
