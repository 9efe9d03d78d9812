"""From photographs and annotations to batches; numpy only in the workers."""
