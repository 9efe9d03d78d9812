"""Turn photographs and annotations into batches; numpy only in the workers."""
