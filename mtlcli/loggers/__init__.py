"""Where a run's numbers may go besides its own events.jsonl: one file each, asked for under `log:` in a recipe."""
