"""Read published data sets as they are downloaded."""
