"""Everything known, folded from the record by pure functions."""
