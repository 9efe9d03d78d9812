"""Records, shards and the directories that hold them."""
