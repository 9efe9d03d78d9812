"""From photos to hands in metres: detect, crop, predict, place, draw."""
