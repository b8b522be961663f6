"""Selection and variation of populations: operators act on one individual, selection returns indices."""
