"""Element-wise losses, HaMeR's set of losses, and masks of unannotated fields."""
