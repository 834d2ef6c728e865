"""What every room may import: files, configuration, hashing, progress and modules."""
