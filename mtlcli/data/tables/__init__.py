"""Tables of one's own: files, columns, labels, splits, leaks, streams."""
