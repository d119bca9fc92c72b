"""Where a public set comes from, for the strategies that distil on one: one source per file."""
