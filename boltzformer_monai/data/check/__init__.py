"""Is a slice data set sound, and what does it hold? Asked before training."""
